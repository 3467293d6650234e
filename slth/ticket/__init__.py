"""Tickets: a network as seeds and one bit per weight, in a file that is safe to load from untrusted sources.

    slth.Ticket.of(model).save("t.safetensors")            # a wrapped model
    net = slth.Ticket.load("t.safetensors").apply(build())  # a plain one of the same shapes, now pruned

A ticket stores for each masked weight how it is drawn (`slth.weights.recipes`) and its mask. Of all other tensors
(biases, normalisation, running statistics) it stores those that neither a constant nor a recipe gives. A digest of the
whole network is compared before a module is changed. On disk a ticket is a sealed safetensors file (`slth.files`).

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
