"""The work of the example chain: run by pilots, with the Python of the node."""

import json
import math
import os
import random
import sys

SUBBANDS, SAMPLES = 10, 200


def signal(place):
    """The true signal."""
    return math.sin(2 * math.pi * place / 50)


def observe(number):
    """Make a token for each subband of an observation: the signal with an unknown gain, and noise."""
    for subband in range(SUBBANDS):
        noise = random.Random(100 * number + subband)
        gain = noise.uniform(0.5, 2)
        samples = [round(gain * signal(place) + noise.gauss(0, 0.05), 6) for place in range(SAMPLES)]
        make("calibration", f"obs{number:03d}-sb{subband}", samples, group=f"obs{number:03d}")
    return {"subbands": SUBBANDS}


def calibrate(samples):
    """Fit the gain by least squares, and remove it."""
    gain = sum(sample * signal(place) for place, sample in enumerate(samples))
    gain /= sum(signal(place) ** 2 for place in range(len(samples)))
    return {"gain": gain, "samples": [round(sample / gain, 6) for sample in samples]}


def image(group):
    """Average the subbands of an observation that are done, and compare the result with the true signal."""
    done = [member["output"]["samples"] for member in group["members"] if member["state"] == "done"]
    mean = [sum(samples[place] for samples in done) / len(done) for place in range(SAMPLES)]
    errors = [value - signal(place) for place, value in enumerate(mean)]
    rms = math.sqrt(sum(error * error for error in errors) / len(errors))
    return {"observation": group["group"], "subbands": len(done), "rms": rms}


def make(stage, key, data, **fields):
    """Make a token for a stage."""
    with open(os.environ["PICAS_TOKENS_FILE"], "a") as file:
        file.write(json.dumps(dict(fields, stage=stage, key=key, input=data)) + "\n")


if __name__ == "__main__":
    steps = {"observe": observe, "calibrate": calibrate, "image": image}
    with open(os.environ["PICAS_TOKEN_FILE"]) as file:  # large inputs do not fit into the environment
        token = json.load(file)
    result = steps[sys.argv[1]](token["input"])
    with open(os.environ["PICAS_OUTPUT_FILE"], "w") as out:
        json.dump(result, out)
