"""Language models hidden in random networks: the measurements of `hidden_lm.py`."""
