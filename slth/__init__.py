"""Strong lottery tickets in attention: find, build, check, ship and compare them."""

from slth.search import fit
from slth.ticket import Ticket, TicketError
from slth.wrap import handle, unwrap, wrap

__version__ = "0.1.0"
__all__ = ["Ticket", "TicketError", "fit", "handle", "unwrap", "wrap"]
