"""A stand-in for the assemble stage."""

from .fixed import stand_in

Stage = stand_in("assemble")
