"""Masks on the weights of a module: one weight's, the groups in which scores compete, the whole."""

from slth.masking.groups import Group, Wrapped
from slth.masking.masked import Gate, Masked, fixed, straight_through

__all__ = ["Gate", "Group", "Masked", "Wrapped", "fixed", "straight_through"]
