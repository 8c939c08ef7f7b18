"""The operator that resets tokens, so that pilots run them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.providers.common.compat.sdk import Context

from airflow_provider_picas import assets
from airflow_provider_picas.operators.tokens.selecting import SelectingOperator
from airflow_provider_picas.parameters import flag


class PicasResetTokensOperator(SelectingOperator):
    """Reset tokens to todo, so that any pilot can run them again. Takes all parameters of ``SelectingOperator``, and:

    :param states: the states to reset. Default: ``error``. With ``locked``, use ``older_than`` to select only tokens
        whose pilots are dead: if the pilot is still alive, its result for such a token is refused.
    :param max_scrubs: skip tokens that have been released this number of times or more.
    :param keep_logs: copy the logs of pilots of the PiCaS client (``logs_<id>.out`` and ``.err``) under the attempt's
        name, since the next attempt overwrites them. Tokens with such a log above 1 MB are skipped.
    :param reason: the reason, which is kept with the attempt.
    :param dry_run: change nothing; log what would be done.

    The attempt that ends (times, exit code, host, job, error) is kept in the token's ``attempts``, and attachments are
    not changed. A token that a pilot claims or finishes in the meantime is skipped.

    Returns ``{"database", "batch", "tokens", "reset", "ids", "left"}``, which can be passed on as a batch unless it was
    the whole pool. ``reset`` is the number of tokens, ``ids`` are some of them, and ``left`` has for each reason the
    number of skipped tokens and some of their ids.
    """

    template_fields: Sequence[str] = (*SelectingOperator.template_fields, "keep_logs", "reason", "dry_run")

    def __init__(
        self,
        *,
        states: Any = "error",
        keep_logs: bool | str = False,
        reason: str = "",
        dry_run: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(states=states, **kwargs)
        self.keep_logs = keep_logs
        self.reason = reason
        self.dry_run = dry_run  # type: ignore[method-assign, assignment]  # Airflow's method of that name is never called on a task

    def execute(self, context: Context) -> dict[str, Any]:
        with self._author_errors():
            dry_run = flag("dry_run", self.dry_run)
            batch = self._batch()
            selection = self._selection(batch)
            hook = self._hook(batch)
            report = hook.editor.reset(
                selection, reason=self.reason or "reset", keep_logs=flag("keep_logs", self.keep_logs), dry_run=dry_run
            )
        self._tell(report, "would be reset" if dry_run else "reset", hook, selection)
        assets.hold_back(self)  # no event if a later task emits one for this asset when the tokens are done
        return self._output(batch, hook, reset=report.changed, ids=report.changed_ids, left=report.skipped_dict())
