"""What the user is told where something cannot be done: one line, before any work or file."""

import reprlib

_brief = reprlib.Repr()
_brief.maxlist = _brief.maxtuple = _brief.maxdict = 8
_brief.maxstring = _brief.maxother = 80


class Refused(Exception):
    """What the user asked for cannot be done; the message is one line and all that the user is told."""


class BadConfig(Refused):
    """A config value that is not allowed. BadConfig("hidden", 0, "an int >= 1") says: hidden=0: must be an int >= 1."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        self.key, self.value, self.allowed = key, value, allowed
        super().__init__(f"{key}={brief(value)}: must be {allowed}")


def brief(value: object) -> str:
    """The value as Python writes it, shortened where it is long."""
    return _brief.repr(value)


def one_line(message: object) -> str:
    """The message without line breaks."""
    return " ".join(str(message).split())
