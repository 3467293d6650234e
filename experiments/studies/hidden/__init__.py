"""A pruned hidden layer in a language model: what `hidden_lm.py` measures."""
