"""GPT-2 pruned from random init: what `gpt2_prune.py` measures."""
