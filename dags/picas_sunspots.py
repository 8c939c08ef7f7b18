"""How long is the cycle of the Sun? A model of 309 years of sunspots, in a window of 66 years at a time.

In 1927 Yule described the numbers of sunspots with a model in which each year follows from the years before (an
autoregression). Each token is a window: a pilot fits such a model, with the order that AIC chooses, and draws the
numbers with the spectrum of the model. The figure is attached to the token, where Airflow's tab *Tokens* shows it.
``sunspot_pilot.sh`` is an own pilot script with the PiCaS client. It makes its environment (PiCaS, statsmodels,
matplotlib) in ``~/sunspots-venv`` on the cluster.

The data are NOAA's yearly numbers, 1700 to 2008, which are in the public domain and part of statsmodels. Needs a
connection ``picas_default`` to a pool without other waiting tokens, since pilots of the PiCaS client take any token,
and a connection ``spider`` to a login node.
"""

from statistics import mean

from airflow.sdk import dag, task

from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasCollectTokensOperator, PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor

WINDOWS = [{"first": first, "last": first + 65} for first in range(1700, 1944, 11)]


@task
def report(windows):
    """The length of the cycle in each window, and its mean."""
    cycles = {}
    for row in sorted(windows["rows"], key=lambda row: row["output.first"]):
        cycles[f"{row['output.first']}-{row['output.last']}"] = row["output.cycle"]
        print(f"{row['output.first']} - {row['output.last']}: {row['output.cycle']:5.2f} years")
    return {"mean": mean(cycles.values()), "shortest": min(cycles.values()), "longest": max(cycles.values())}


@dag(schedule=None, catchup=False, tags=["picas", "example"], doc_md=__doc__)
def picas_sunspots():
    push = PicasPushTokensOperator(task_id="push", inputs=WINDOWS)
    pilots = PicasSubmitPilotsOperator(
        task_id="pilots",
        batch=push.output,
        script="sunspot_pilot.sh",
        pilots=2,
        sbatch={"time": "00:30:00", "cpus-per-task": 1},
        ssh_conn_id="spider",
    )
    wait = PicasTokenStateSensor(task_id="wait", batch=push.output, deferrable=True)
    collect = PicasCollectTokensOperator(
        task_id="collect", batch=push.output, fields=["output.first", "output.last", "output.cycle"]
    )
    push >> pilots >> wait >> collect
    report(collect.output)


picas_sunspots()
