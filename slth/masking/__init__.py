"""Masks on the weights of a module: of one weight, of groups in which scores compete, and of the whole module."""

from slth.masking.groups import Group, Wrapped
from slth.masking.masked import Gate, Masked, fixed, straight_through

__all__ = ["Gate", "Group", "Masked", "Wrapped", "fixed", "straight_through"]
