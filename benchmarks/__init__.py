"""Measurements: what is promised (`acceptance`) and how fast it is (``bench_*``)."""
