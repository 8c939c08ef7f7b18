"""How fast the provider is, measured on a real server: ``make bench``, or ``python -m benchmarks`` for a part of it.

Figures are medians of interleaved pairs, and ratios are those of one run: a machine's speed drifts, a ratio hardly does.
"""
