"""Benchmarks of the provider on a real server: ``make bench``, or ``python -m benchmarks`` for a part of them.

Figures are medians of interleaved pairs. Ratios are from one run: a machine's speed drifts, but a ratio hardly changes.
"""
