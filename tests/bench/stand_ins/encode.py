"""A stand-in for the encode stage."""

from .fixed import stand_in

Stage = stand_in("encode")
