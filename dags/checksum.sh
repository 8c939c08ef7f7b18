#!/bin/sh
# The size and the SHA-256 of the file that PICAS_INPUT names. Fails if it cannot be read.
set -eu
sum=$(sha256sum <"$PICAS_INPUT")
printf '{"bytes": %d, "sha256": "%s"}\n' "$(wc -c <"$PICAS_INPUT")" "${sum%% *}" >"$PICAS_OUTPUT_FILE"
