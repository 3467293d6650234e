"""Strong lottery tickets in attention: find, build, check, ship and compare them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slth import former, plugins

if TYPE_CHECKING:
    from slth.search import fit
    from slth.ticket import Ticket, TicketError, inspect
    from slth.ticket.serving import serve
    from slth.wrapping import handle, unwrap, wrap

__version__ = "0.2.0"
__all__ = ["Ticket", "TicketError", "fit", "handle", "inspect", "serve", "unwrap", "wrap"]

# the module that defines each public name: imported on first access, so that figures can be drawn without torch
_HOMES = {
    "Ticket": "slth.ticket",
    "TicketError": "slth.ticket",
    "fit": "slth.search",
    "handle": "slth.wrapping",
    "inspect": "slth.ticket",
    "serve": "slth.ticket.serving",
    "unwrap": "slth.wrapping",
    "wrap": "slth.wrapping",
}


_ROOMS = (
    "attention",
    "construct",
    "kernels",
    "masking",
    "models",
    "plots",
    "search",
    "tasks",
    "theory",
    "ticket",
    "weights",
)

_FILES = ("building", "convert", "hf")  # modules beside the rooms that users name

former.follow()
plugins.define("slth.search")  # registers the traits and gates that stored models refer to by name


def __getattr__(name: str) -> Any:
    if name in _ROOMS or name in _FILES or f"slth.{name}" in former.MOVED:
        return import_module(f"slth.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'slth' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS, *_FILES, "__version__", "__doc__", "__name__"})
