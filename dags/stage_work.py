"""The work of the example chain: run by pilots, with the Python of the node."""

import json
import math
import os
import random
import sys

SUBBANDS, SAMPLES = 4, 200


def signal(place):
    """The true signal."""
    return math.sin(2 * math.pi * place / 50)


def observe(number):
    """Make a token for each subband of an observation: the signal with an unknown gain, and noise."""
    for subband in range(SUBBANDS):
        noise = random.Random(100 * number + subband)
        gain = noise.uniform(0.5, 2)
        samples = [round(gain * signal(place) + noise.gauss(0, 0.05), 6) for place in range(SAMPLES)]
        key = f"obs{number:03d}-sb{subband}"
        make("calibration", key, {"samples": samples})
    return {"subbands": SUBBANDS}


def calibrate(data):
    """Fit the gain by least squares, and make a token for the image."""
    samples = data["samples"]
    gain = sum(sample * signal(place) for place, sample in enumerate(samples))
    gain /= sum(signal(place) ** 2 for place in range(len(samples)))
    make("imaging", os.environ["PICAS_TOKEN_ID"].rpartition(":")[2], {"samples": samples, "gain": gain})
    return {"gain": gain}


def image(data):
    """Remove the gain, and compare with the true signal."""
    errors = [sample / data["gain"] - signal(place) for place, sample in enumerate(data["samples"])]
    return {"rms": math.sqrt(sum(error * error for error in errors) / len(errors))}


def make(stage, key, data):
    """Make a token for a stage."""
    with open(os.environ["PICAS_TOKENS_FILE"], "a") as file:
        file.write(json.dumps({"stage": stage, "key": key, "input": data}) + "\n")


if __name__ == "__main__":
    steps = {"observe": observe, "calibrate": calibrate, "image": image}
    result = steps[sys.argv[1]](json.loads(os.environ["PICAS_INPUT"]))
    with open(os.environ["PICAS_OUTPUT_FILE"], "w") as out:
        json.dump(result, out)
