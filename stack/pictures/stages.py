"""The chain in the pictures of the graph of stages: observations are calibrated by subband and checked, then imaged."""

from airflow.sdk import dag

from airflow_provider_picas.options import PilotStage, Scaling
from airflow_provider_picas.task_groups import picas_run

OBSERVE = """
name=$PICAS_INPUT
for subband in 0 1 2 3 4 5 6 7 8 9; do
  key="$name-SB00$subband"
  echo "{\\"stage\\": \\"calibration\\", \\"key\\": \\"$key\\", \\"input\\": \\"$key\\", \\"group\\": \\"$name\\"}"
done > "$PICAS_TOKENS_FILE"
echo "{\\"stage\\": \\"inspection\\", \\"key\\": \\"$name\\", \\"input\\": \\"$name\\"}" >> "$PICAS_TOKENS_FILE"
"""
CALIBRATE = """
case $PICAS_INPUT in *2-SB003) echo "solver: no solution after 500 iterations, residual 0.31" >&2; exit 4 ;; esac
sleep 4
"""


@dag(schedule=None)
def sky_stages() -> None:
    picas_run(
        inputs=[f"L8120{number}" for number in range(41, 49)],
        command=OBSERVE,
        stages={
            "calibration": PilotStage(command=CALIBRATE, scaling=Scaling(pilots=2), least_work=1, max_errors=5),
            "imaging": PilotStage(command="sleep 3", group_of="calibration", at_least=9, least_work=1),
            "inspection": PilotStage(command="sleep 10", least_work=1),
        },
        sbatch={"time": "00:30:00"},
        ssh_conn_id="spider",
    )


sky_stages()
