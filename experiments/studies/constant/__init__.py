"""The number of candidates that a subset sum needs: the measurements of `constant.py`."""
