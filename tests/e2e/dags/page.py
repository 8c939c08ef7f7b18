"""A run that the tests of the page watch. What its tokens do, and when, is up to the test: each input is ``<what>:<path>``."""

from airflow.sdk import dag, get_current_context, task

from airflow_provider_picas.task_groups import picas_run

# `good` ends when the file is there; `bad` fails until it was given back once.
COMMAND = """
what=${PICAS_INPUT%%:*} file=${PICAS_INPUT#*:}
case $what in
  good) printf 'waiting <b>&amp;</b> \\033[31mred\\033[0m \\342\\200\\256txt.exe\\n'; until [ -e "$file" ]; do sleep 0.2; done ;;
  bad) if [ "$PICAS_ATTEMPT" = 1 ]; then echo "no file /data/$PICAS_TOKEN_ID <b>&amp;" >&2; exit 3; fi ;;
esac
echo "{\\"name\\": \\"$what\\"}" > "$PICAS_OUTPUT_FILE"
"""


@dag(schedule=None, params={"inputs": ["bad:"]})
def watched_run():
    @task
    def inputs():
        return get_current_context()["params"]["inputs"]

    picas_run(
        inputs=inputs(),
        command=COMMAND,
        pilots=2,
        pilot={"slots": 2, "lease": 15},  # the good tokens keep both pilots busy: they end once the gate opens
        sbatch={"time": "00:10:00"},
        ssh_conn_id="spider",
    )


watched_run()
