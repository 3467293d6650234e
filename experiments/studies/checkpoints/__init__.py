"""Trained checkpoints hidden in random networks: the measurements of `hide_checkpoint.py`."""
