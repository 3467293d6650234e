"""Strong lottery tickets in attention: find, build, check, ship and compare them."""

__version__ = "0.1.0"
