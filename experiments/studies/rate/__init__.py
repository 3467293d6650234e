"""Bits per weight against error: the measurements of `rate.py`."""
