#!/bin/bash
#SBATCH --job-name=sunspots
#SBATCH --time=00:30:00
#
# A pilot with the PiCaS client. The first one makes the environment; the others wait for it.
exec 9>~/.sunspots-venv.lock
flock 9
if [ ! -e ~/sunspots-venv/complete ]; then
  python3 -m venv ~/sunspots-venv
  ~/sunspots-venv/bin/pip install --quiet picas statsmodels matplotlib && touch ~/sunspots-venv/complete
fi
exec 9>&-
export MPLCONFIGDIR=$TMPDIR MPLBACKEND=agg

exec ~/sunspots-venv/bin/python3 - <<'PYTHON'
import io

import matplotlib.pyplot as plt
import numpy as np
import picasconfig
from picas.actors import RunActor
from picas.clients import CouchDB
from picas.modifiers import BasicTokenModifier
from statsmodels.datasets import sunspots
from statsmodels.tsa.ar_model import ar_select_order

DATA = sunspots.load_pandas().data


def fit(numbers):
    """An autoregression of the square roots, which fluctuate by the same amount in strong and weak cycles."""
    return ar_select_order(np.sqrt(numbers), maxlag=12, ic="aic").model.fit()


def cycle(model):
    """The period in years of the least damped oscillation: of the complex root nearest to the unit circle."""
    root = min((root for root in model.roots if root.imag > 0), key=abs)
    return 2 * np.pi / np.angle(root)


def draw(years, numbers, model):
    """The numbers above, the spectrum of the model below; as PNG."""
    periods = np.linspace(4, 25, 400)
    lags = np.array(model.model.ar_lags)
    coefficients = model.params[1:]
    waves = np.exp(-2j * np.pi * np.outer(1 / periods, lags))
    spectrum = model.sigma2 / np.abs(1 - waves @ coefficients) ** 2
    figure, (above, below) = plt.subplots(2, figsize=(7, 5), layout="constrained")
    above.plot(years, numbers, ".-", color="tab:orange")
    above.set(title=f"Sunspots, {years[0]} to {years[-1]}", ylabel="number in a year")
    below.semilogy(periods, spectrum)
    below.axvline(cycle(model), color="gray", linestyle="--")
    below.set(title=f"A cycle of {cycle(model):.2f} years", xlabel="period (years)", ylabel="spectral density")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    plt.close(figure)
    return picture.getvalue()


class SunspotActor(RunActor):
    """Fits the window that a token names, and attaches the figure to the token."""

    def __init__(self, db, modifier, **viewargs):
        super().__init__(db, **viewargs)
        self.modifier = modifier

    def process_task(self, token):
        first, last = token["input"]["first"], token["input"]["last"]
        window = DATA[(DATA.YEAR >= first) & (DATA.YEAR <= last)]
        years, numbers = window.YEAR.to_numpy(int), window.SUNACTIVITY.to_numpy()
        model = fit(numbers)
        token.put_attachment("sunspots.png", draw(years, numbers, model), "image/png")
        token["output"] = {"first": first, "last": last, "order": len(model.model.ar_lags), "cycle": cycle(model)}
        token["exit_code"] = 0
        self.modifier.close(token)


client = CouchDB(
    url=picasconfig.PICAS_HOST_URL,
    db=picasconfig.PICAS_DATABASE,
    username=picasconfig.PICAS_USERNAME,
    password=picasconfig.PICAS_PASSWORD,
)
actor = SunspotActor(client, BasicTokenModifier(), view="todo", design_doc="Monitor")
actor.run(max_token_time=600, max_total_time=1500, max_scrub=2)
print(f"This pilot fitted {actor.tasks_processed} windows")
PYTHON
