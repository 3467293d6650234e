"""Tickets in random GPT-2s: the measurements of `gpt2_prune.py`, `qk_scale.py` and `recipe.py`."""
