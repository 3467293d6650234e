"""Bits a weight against error: what `rate.py` measures."""
