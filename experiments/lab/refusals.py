"""Errors for the user: one line, raised before any work or file."""

import reprlib

_brief = reprlib.Repr()
_brief.maxlist = _brief.maxtuple = _brief.maxdict = 8
_brief.maxstring = _brief.maxother = 80


class Refused(Exception):
    """A request that cannot be fulfilled; its one-line message is all that the user sees."""


class BadConfig(Refused):
    """A config value that is not allowed. BadConfig("hidden", 0, "an int >= 1") says: hidden=0: must be an int >= 1."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        self.key, self.value, self.allowed = key, value, allowed
        super().__init__(f"{key}={brief(value)}: must be {allowed}")


def brief(value: object) -> str:
    """Return the repr of a value, shortened if it is long."""
    return _brief.repr(value)


def one_line(message: object) -> str:
    """Return the message without line breaks."""
    return " ".join(str(message).split())
