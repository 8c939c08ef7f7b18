"""``airflow-picas status``, ``errors`` and ``logs``: the content of a pool, for people at a terminal.

Token content is foreign: it is printed on separate lines, escaped and truncated.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_picas.cli.common import CommandError, add_connection, use_hooks
from airflow_provider_picas.couchdb import overview
from airflow_provider_picas.couchdb.errors import CouchDBError, NotFoundError
from airflow_provider_picas.couchdb.pool import Document
from airflow_provider_picas.lifecycle.json_values import number
from airflow_provider_picas.lifecycle.profile import Profile
from airflow_provider_picas.lifecycle.transitions import for_display
from airflow_provider_picas.slurm.remote import RemoteError
from airflow_provider_picas.submissions import deaths
from airflow_provider_picas.tokens import attachments, batch
from airflow_provider_picas.tokens.causes import message_of
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.selection import UnknownBatchError
from airflow_provider_picas.tokens.states import State, state_of
from airflow_provider_picas.tokens.text import last_lines, one_line

if TYPE_CHECKING:
    from airflow_provider_picas.hooks.picas import PicasHook

LOG_BYTES = 20_000  # printed of each log
LOG_LINE = 2_000  # characters printed of one line


def add(commands: Any) -> None:
    """Add the commands to a parser."""
    status = commands.add_parser("status", help="count the tokens of the pool, or of a batch, and its pilots")
    add_connection(status)
    status.add_argument("--batch", help="only this batch")
    status.add_argument("--limit", type=_positive, default=20, help="batches and submissions to show (default: 20)")
    status.add_argument("--ssh-conn-id", help="ask Slurm for the account's pilots, too, by this SSH connection")
    status.set_defaults(run=_run(_status))
    errors = commands.add_parser("errors", help="group the failed tokens by cause")
    add_connection(errors)
    errors.add_argument("--batch", help="only this batch")
    errors.set_defaults(run=_run(_errors))
    logs = commands.add_parser("logs", help="print the logs of a token's attempts")
    add_connection(logs)
    logs.add_argument("token", help="id of the token, such as <batch>:<key>")
    logs.add_argument("--bytes", type=_positive, default=LOG_BYTES, help=f"of each log's end (default: {LOG_BYTES})")
    logs.set_defaults(run=_run(_logs))


def _positive(text: str) -> int:
    number = int(text)
    if not 0 < number <= 100_000_000:
        raise ValueError
    return number


def _run(lines: Any) -> Any:
    """The function that runs a command, which yields the lines to print."""

    def run(options: argparse.Namespace) -> int:
        use_hooks()
        from airflow_provider_picas.checks.pool import OneTry

        try:
            for line in lines(OneTry(options.picas_conn_id, database=options.database), options):
                print(line)
        except (CouchDBError, RemoteError, UnknownBatchError) as error:
            raise CommandError(str(error)) from None
        return 0

    return run


def _batch(options: argparse.Namespace) -> str | None:
    try:
        found = batch.Batch.parse(options.batch)
    except ValueError as error:
        raise CommandError(str(error)) from None
    return found.id if found else None


def _status(hook: PicasHook, options: argparse.Namespace) -> Iterator[str]:
    if (wanted := _batch(options)) is not None:
        yield f"{wanted} in {hook.settings.place}: {hook.count_existing(wanted)}"
    else:
        yield f"{hook.settings.place}: {hook.count()}"
        yield from _batches(hook, options.limit)
    yield from _pilots(hook, options.limit)
    if options.ssh_conn_id:
        from airflow_provider_picas.hooks.slurm import SlurmHook

        with SlurmHook(options.ssh_conn_id) as slurm:
            waiting, running = slurm.count_pilots()
            yield f"\nSlurm, {slurm.place}: {running} pilots running, {waiting} pending."


def _batches(hook: PicasHook, limit: int) -> Iterator[str]:
    try:
        counts = hook.batches()
    except NotFoundError:
        yield "\nBatches cannot be listed: the views of airflow-picas-1 are missing. A push creates them if its login may."
        return
    latest = [name for name in hook.do(overview.changed_last(hook.pool)) if name in counts]
    names = [*latest, *sorted(counts.keys() - set(latest), reverse=True)]
    if names:
        yield f"\n{''.join(f'{state:>9}' for state in State)}  batch, most recently changed first"
    for name in names[:limit]:
        yield _row(counts[name], name)
    if len(names) > limit:
        yield f"and {len(names) - limit:,} more batches (--limit)"


def _row(counts: Counts, name: str) -> str:
    stateless = f" ({counts.stateless} more tokens in no state)" if counts.stateless else ""
    return f"{''.join(f'{counts[state]:>9}' for state in State)}  {one_line(name)}{stateless}"


def _pilots(hook: PicasHook, limit: int) -> Iterator[str]:
    """The pilots of this package by submission, from their leases."""
    documents, now = hook.do(overview.pilots(hook.pool))
    found: dict[str, list[Document]] = {}
    for lease in documents:
        found.setdefault(str(lease.get("submission", "")), []).append(lease)
    if not found or now is None:
        return
    yield f"\n{'alive':>9}{'silent':>9}{'ended':>9}{'last seen':>11}  submission"
    by_age = sorted(found, key=lambda name: -max(number(lease.get("renewed")) for lease in found[name]))
    for name in by_age[:limit]:
        lives = Counter(_life(lease, now) for lease in found[name])
        last_seen = now - max(number(lease.get("renewed")) for lease in found[name])
        yield f"{lives['alive']:>9}{lives['silent']:>9}{lives['ended']:>9}{_ago(last_seen):>11}  {one_line(name)}"
    if len(by_age) > limit:
        yield f"and {len(by_age) - limit:,} more submissions (--limit)"


def _life(lease: Document, now: float) -> str:
    if lease.get("ended"):
        return "ended"
    over = number(lease.get("renewed")) + number(lease.get("lease"), deaths.LEASE)
    return "silent" if now > over + 1 else "alive"  # the database's clock has whole seconds


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{min(seconds / size, 99_999):.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


def _errors(hook: PicasHook, options: argparse.Namespace) -> Iterator[str]:
    from airflow_provider_picas.hooks.failures import FailedTokens, report

    wanted = _batch(options)
    counts = hook.count_existing(wanted)
    if not counts.error:
        yield f"No tokens failed ({counts})."
        return
    failed = FailedTokens(hook)
    failed.add(hook.tokens(State.ERROR, wanted))
    yield from report(failed.summary(), failed.tokens)


def _logs(hook: PicasHook, options: argparse.Namespace) -> Iterator[str]:
    token = _token(hook, options.token)
    yield from _attempts(for_display(token, hook.settings.profile), hook.settings.profile)
    names = attachments.log_names(token)
    if not names:
        yield "The token has no logs."
    stubs = attachments.stubs_of(token)
    for name in reversed(names):  # so that the newest stderr is at the end of the screen
        file = io.BytesIO()
        size = hook.download(token, name, file, limit=options.bytes)
        shown = f"; the last {options.bytes:,} are shown" if size > options.bytes else ""
        yield f"\n{one_line(name)} ({size:,} bytes{shown}):"
        text = file.getvalue().decode("utf-8", "replace").expandtabs()
        if lines := last_lines(text, len(text), LOG_LINE):
            yield lines
    others = [f"{one_line(name)} ({attachments.size(stubs[name]):,} bytes)" for name in stubs if name not in names]
    if others:
        yield f"\nOther attachments: {', '.join(others[:20])}{' …' if len(others) > 20 else ''}"


def _token(hook: PicasHook, token_id: str) -> Document:
    try:
        found = hook.get(token_id) if token_id and not token_id.startswith("_") else {}
    except NotFoundError as error:
        if error.database_missing:
            raise
        found = {}
    if not hook.settings.profile.is_token(found):
        raise CommandError(
            f"There is no token {one_line(token_id)!r} in {hook.settings.place}. Token ids begin with the batch;"
            " `airflow-picas errors` lists those of failed tokens."
        )
    return found


def _attempts(token: Mapping[str, Any], profile: Profile) -> Iterator[str]:
    """A line for each known attempt, the last one first."""
    state = state_of(token, profile)
    if state is State.ERROR:  # the message has the exit code
        now, where = f": {message_of(token)}", _where({**token, "exit_code": None})
    else:
        now, where = "", _where(token)
    yield f"{one_line(str(token['_id']))} is {f'in state {state}' if state else 'in no state'}{now}{where}"
    earlier = token.get("attempts")
    for attempt in reversed(earlier if isinstance(earlier, list) else []):
        if isinstance(attempt, Mapping):
            yield f"  before: {one_line(str(attempt.get('reason') or 'no reason'))}{_where(attempt)}"


def _where(attempt: Mapping[str, Any]) -> str:
    """The host, the job and the duration of an attempt."""
    parts: Iterable[tuple[str, Any]] = (
        ("exit code", attempt.get("exit_code")),
        ("on", attempt.get("hostname")),
        ("job", attempt.get("slurm_job_id")),
        ("seconds", attempt.get("seconds")),
    )
    details = ", ".join(f"{name} {one_line(str(value), 80)}" for name, value in parts if value not in (None, ""))
    return f" ({details})" if details else ""
