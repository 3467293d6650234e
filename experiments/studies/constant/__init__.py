"""How many candidates a subset sum needs: what `constant.py` measures."""
