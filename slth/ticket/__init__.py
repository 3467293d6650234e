"""Tickets: a network as seeds and one bit a weight, in one file that nobody need trust.

    slth.Ticket.of(model).save("t.safetensors")            # a wrapped model
    net = slth.Ticket.load("t.safetensors").apply(build())  # a plain one of the same shapes, now pruned

A ticket says per masked weight how it is drawn (`slth.weights.recipes`) and which of its entries stay; of everything
else it holds what does not follow from a constant or a recipe: biases, normalisation, running statistics. A digest of
the whole network is compared before anything is changed. On disk it is a sealed safetensors file (`slth.files`).

    python -m slth.ticket show FILE
    python -m slth.ticket summary FILE [OTHER]
"""

from slth.ticket.inspecting import Inspection, Overlap, Share, columns, inspect, overlap
from slth.ticket.record import Plain, TicketError, Weight
from slth.ticket.ticket import Ticket

__all__ = [
    "Inspection",
    "Overlap",
    "Plain",
    "Share",
    "Ticket",
    "TicketError",
    "Weight",
    "columns",
    "inspect",
    "overlap",
]
