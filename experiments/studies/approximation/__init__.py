"""Approximation errors of pruned random layers: the measurements of `approx_error.py`."""
