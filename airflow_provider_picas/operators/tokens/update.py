"""The operator that sets fields of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import Context

from airflow_provider_picas.operators.tokens.selecting import SelectingOperator
from airflow_provider_picas.parameters import flag


class PicasUpdateTokensOperator(SelectingOperator):
    """Set fields of tokens, such as ``priority`` or ``time_limit``. Takes all parameters of ``SelectingOperator``, and:

    :param fields: names and values. Fields of PiCaS and of this provider (``lock``, ``exit_code``, ``attempts`` …) are
        refused.
    :param states: the states to update. Default: ``todo``. If a ``locked`` token is changed, its result is refused.
    :param dry_run: change nothing; log what would be done.

    Returns ``{"database", "batch", "tokens", "updated", "ids", "left"}``, as ``PicasResetTokensOperator`` does.
    """

    template_fields: Sequence[str] = (*SelectingOperator.template_fields, "fields", "dry_run")

    def __init__(
        self, *, fields: Mapping[str, Any], states: Any = "todo", dry_run: bool | str = False, **kwargs: Any
    ) -> None:
        super().__init__(states=states, **kwargs)
        self.fields = fields
        self.dry_run = dry_run  # type: ignore[method-assign, assignment]  # Airflow's method of that name is never called on a task

    def execute(self, context: Context) -> dict[str, Any]:
        with self._author_errors():
            dry_run = flag("dry_run", self.dry_run)
            batch = self._batch()
            selection = self._selection(batch)
            hook = self._hook(batch)
            report = hook.editor.update(selection, self.fields, dry_run=dry_run)
        self._tell(report, "would be updated" if dry_run else "updated", hook, selection)
        return self._output(batch, hook, updated=report.changed, ids=report.changed_ids, left=report.skipped_dict())
