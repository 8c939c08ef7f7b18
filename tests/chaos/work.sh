# The command of a random round: writes down what it does, and holds a lock file of its token while it or a child of it lives.
say() { echo "$1 $PICAS_TOKEN_ID $PICAS_FIELD_CLAIM $ROUND_PILOT $EPOCHREALTIME $2" >> "$ROUND_FOLDER/lines"; }
lock="$ROUND_FOLDER/locks/$PICAS_TOKEN_ID"
exec 9>> "$lock"
flock -n 9 || say overlap "$(tail -n 1 "$lock")"
echo "$PICAS_FIELD_CLAIM" >&9
say begin -
sleep "$PICAS_FIELD_SECONDS"
if [ "$PICAS_ATTEMPT" -le "$PICAS_FIELD_FAILURES" ]; then
  say end 3
  exit 3
fi
echo "\"$PICAS_FIELD_CLAIM\"" > "$PICAS_OUTPUT_FILE"
say end 0
