"""The operator that sets fields of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens.selecting import EditingOperator
from airflow_provider_picas.tokens.selection import EditReport, Selection


class PicasUpdateTokensOperator(EditingOperator):
    """Set fields of tokens, such as ``priority`` or ``time_limit``. Takes all parameters of ``EditingOperator``, and:

    :param fields: names and values. Fields of PiCaS and of this provider (``lock``, ``exit_code``, ``attempts`` …) are
        refused.
    :param states: the states to update. Default: ``todo``. If a ``locked`` token is changed, its result is refused.

    Returns ``{"database", "batch", "tokens", "updated", "ids", "left"}``, as described for
    ``EditingOperator``.
    """

    changed = "updated"
    template_fields: Sequence[str] = (*EditingOperator.template_fields, "fields")

    def __init__(self, *, fields: Mapping[str, Any], states: Any = "todo", **kwargs: Any) -> None:
        super().__init__(states=states, **kwargs)
        self.fields = fields

    def _edit(self, hook: PicasHook, selection: Selection, dry_run: bool) -> EditReport:
        return hook.editor.update(selection, self.fields, dry_run=dry_run)
