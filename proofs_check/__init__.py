"""Numerical tests of the paper's statements: `python -m proofs_check`.

Each file named after a statement has its claim, the cases that test it, and controls, which are false variants of the
claim that must fail. A new statement is a new file with a function `check`.
"""
