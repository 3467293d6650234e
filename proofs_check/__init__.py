"""The paper's statements as code that can fail: `python -m proofs_check`.

Each file named after a statement holds its claim, the cases on which it is put to the test, and controls: the same
with something wrong, which must not hold. A new statement is a new file with a function `check`.
"""
