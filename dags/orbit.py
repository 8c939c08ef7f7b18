"""An orbit around the Sun, integrated for ten revolutions: run by pilots, with the Python of the node."""

import json
import math
import os
import sys

TOLERANCE = 1e-4


def energy_error(eccentricity, steps):
    """The largest relative error of the energy, with this number of leapfrog steps for each revolution."""
    x, y = 1 - eccentricity, 0.0
    vx, vy = 0.0, math.sqrt((1 + eccentricity) / (1 - eccentricity))
    step = 2 * math.pi / steps
    worst = 0.0
    for _ in range(10 * steps):
        x, y = x + vx * step / 2, y + vy * step / 2
        cube = math.hypot(x, y) ** 3
        vx, vy = vx - step * x / cube, vy - step * y / cube
        x, y = x + vx * step / 2, y + vy * step / 2
        energy = (vx * vx + vy * vy) / 2 - 1 / math.hypot(x, y)
        worst = max(worst, abs(-2 * energy - 1))
    return worst


if __name__ == "__main__":
    eccentricity = float(os.environ["PICAS_INPUT"])
    steps = 1000 * 10 ** (int(os.environ["PICAS_ATTEMPT"]) - 1)  # another attempt takes smaller steps
    error = energy_error(eccentricity, steps)
    if error > TOLERANCE:
        sys.exit(f"the energy error exceeds {TOLERANCE:g} with {steps} steps")
    with open(os.environ["PICAS_OUTPUT_FILE"], "w") as file:
        json.dump({"steps": steps, "energy_error": error}, file)
