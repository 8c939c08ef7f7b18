"""Removes old submissions from the remote folder, so that it does not grow forever.

Changes only folders in which nothing was created or removed for a day, and none with pending or running jobs: no pilot
reads them, and no worker is using them. Folders with unsent results are kept, regardless of their age.
"""

from __future__ import annotations

import math

from airflow_provider_picas.slurm.remote import OURS, Command, Operation, ok, quote

KEEP_DAYS = 30.0  # days to keep the folder of a submission after its last change
KEEP_NUMBER = 1_000  # limit on the folders that are kept: the oldest are removed first
IDLE = 1440  # minutes without a change before anything is removed from a folder
MOST_REMOVED = 200  # limit on the folders removed by one sweep
REMOVED = ".removed"
"""File in the remote folder: base keys and numbers of removed submissions, so that no number is used twice."""
_MOST_NOTED = 20_000  # lines of that file


def sweep(folder: str, keep_days: float = KEEP_DAYS) -> Operation[list[str]]:
    """Remove old submissions from a remote folder. Returns their keys. Removes credentials of ended jobs after a day.

    Raises RemoteError, also if squeue does not answer: then nothing is removed.
    """
    seconds = int(min(keep_days * 86_400, math.ldexp(1, 53)))
    text = f"""
cd -- {quote(folder)} || exit 4
jobs=$(squeue --noheader --all {OURS} --format=%j) || exit 5
find . -maxdepth 1 -type d \\( -name '.picas-*' -o -name '.gone.picas-*' \\) -mmin +{IDLE} -exec rm -rf -- {{}} +
idle=$({{
  printf '%s\\n' "$jobs" --
  find . -maxdepth 1 -type d -name 'picas-*' -mmin +{IDLE} -printf '%T@ %f\\n' | sort -n
}} | awk '
  !listed && $0 == "--" {{ listed = 1; next }}
  !listed {{ live[$0]; sub(/-[0-9]+$/, ""); live[$0]; next }}
  NF == 2 && $2 ~ /^picas-[A-Za-z0-9_-]+[.][0-9]+$/ && !($2 in live)')
[ -n "$idle" ] || exit 0
{{
  printf '%s\\n' "$idle" | cut -d' ' -f2
  find . -mindepth 3 -maxdepth 3 -path './picas-*/credentials/*'
}} | awk -F/ 'NF == 1 {{ idle[$0] }} NF == 4 && ($2 in idle)' | tr '\\n' '\\0' | xargs -0r rm -rf --
extra=$(($(find . -maxdepth 1 -type d -name 'picas-*.[0-9]*' | wc -l) - {KEEP_NUMBER}))
before=$(($(date +%s) - {seconds}))
printf '%s\\n' "$idle" | head -n {MOST_REMOVED} | while read -r changed name; do
  [ "${{changed%.*}}" -lt $before ] || [ $extra -gt 0 ] || continue
  [ -z "$(find "$name/unsent" -name '*.json' 2>/dev/null | head -n 1)" ] || continue
  echo "${{name%.*}} ${{name##*.}}" >>{REMOVED} || exit 1
  mv -T -- "$name" ".gone.$name" && rm -rf -- ".gone.$name" || exit 1
  echo "$name"
  extra=$((extra-1))
done || exit 1
if [ -e {REMOVED} ] && [ "$(wc -l <{REMOVED})" -gt {_MOST_NOTED} ]; then
  tail -n {_MOST_NOTED // 2} {REMOVED} >{REMOVED}.$$ && mv -f -- {REMOVED}.$$ {REMOVED} || {{ rm -f -- {REMOVED}.$$; exit 1; }}
fi"""
    output = yield from ok(Command(text), "Old submissions could not be removed")
    return output.stdout.split()
