"""Benchmarks: one module per claim, each writing bench/records/CLAIM.HARDWARE.json."""
