"""Tickets by construction: masks found by solving subset sums, with a certificate of what is left of the error."""

from slth.construct.attention import AttentionTicket, attention
from slth.construct.certificate import Certificate, certificate
from slth.construct.linear import LinearTicket, linear
from slth.construct.projections import ProjectionTicket
from slth.construct.variants import variant

__all__ = [
    "AttentionTicket",
    "Certificate",
    "LinearTicket",
    "ProjectionTicket",
    "attention",
    "certificate",
    "linear",
    "variant",
]
