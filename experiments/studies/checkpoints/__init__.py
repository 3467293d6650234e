"""A trained checkpoint and its ticket: what `hide_checkpoint.py` reads and measures."""
