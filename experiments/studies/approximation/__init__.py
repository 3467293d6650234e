"""How near a pruned random layer comes: what `approx_error.py` and `depth.py` measure."""
