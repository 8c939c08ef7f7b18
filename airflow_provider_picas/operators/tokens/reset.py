"""The operator that resets tokens, so that pilots run them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow_provider_picas import assets
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens.selecting import EditingOperator
from airflow_provider_picas.parameters import flag
from airflow_provider_picas.tokens.selection import EditReport, Selection


class PicasResetTokensOperator(EditingOperator):
    """Reset tokens to todo, so that any pilot can run them again. Takes all parameters of ``EditingOperator``, and:

    :param states: the states to reset. Default: ``error``. With ``locked``, use ``older_than`` to select only tokens
        whose pilots are dead: if the pilot is still alive, its result for such a token is refused.
    :param max_scrubs: skip tokens that have been released this number of times or more.
    :param keep_logs: copy the logs of pilots of the PiCaS client (``logs_<id>.out`` and ``.err``) under the attempt's
        name, since the next attempt overwrites them. Tokens with such a log above 1 MB are skipped.
    :param reason: the reason, which is kept with the attempt.

    The attempt that ends (times, exit code, host, job, error) is kept in the token's ``attempts``, and attachments are
    not changed.

    Returns ``{"database", "batch", "tokens", "reset", "ids", "left"}``, as described for ``EditingOperator``.
    """

    changed = "reset"
    template_fields: Sequence[str] = (*EditingOperator.template_fields, "keep_logs", "reason")

    def __init__(
        self, *, states: Any = "error", keep_logs: bool | str = False, reason: str = "", **kwargs: Any
    ) -> None:
        super().__init__(states=states, **kwargs)
        self.keep_logs = keep_logs
        self.reason = reason

    def _edit(self, hook: PicasHook, selection: Selection, dry_run: bool) -> EditReport:
        keep_logs = flag("keep_logs", self.keep_logs)
        report = hook.editor.reset(selection, reason=self.reason or "reset", keep_logs=keep_logs, dry_run=dry_run)
        assets.hold_back(self)  # no event if a later task emits one for this asset when the tokens are done
        return report
