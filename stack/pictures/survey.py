"""The run that is in the pictures of docs/images: most of its tokens are done, some fail, and pilots still work."""

from airflow.sdk import dag

from airflow_provider_picas.task_groups import picas_run

COMMAND = """
number=${PICAS_INPUT##*SB}; number=$(expr "${number%%[!0-9]*}" + 0)
name=${PICAS_TOKEN_ID##*:}
echo "$(date +%T) calibrate: reading $name"
case $((number % 20)) in
  7)  echo "FileNotFoundError: no file /data/$name/observation.ms" >&2; exit 3 ;;
  13) if [ "$number" -gt 120 ]; then echo "solver: no solution after 500 iterations, residual 0.31" >&2; exit 4; fi ;;
esac
sleep 0.$((3 + number % 7))
echo "$(date +%T) calibrate: converged after $((20 + number % 17)) iterations"
[ $((number % 100)) -lt 99 ] || sleep 60
echo "{\\"flux\\": $((1000 + number * 7))}" > "$PICAS_OUTPUT_FILE"
"""


@dag(schedule=None)
def sky_survey() -> None:
    picas_run(
        inputs=[{"subband": f"L812041-SB{number:03d}"} for number in range(300)],
        key="subband",
        command=COMMAND,
        pilots=4,
        sbatch={"time": "00:30:00"},
        max_errors=40,
        ssh_conn_id="spider",
    )


sky_survey()
