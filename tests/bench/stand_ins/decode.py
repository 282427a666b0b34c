"""A stand-in for the decode stage."""

from .fixed import stand_in

Stage = stand_in("decode")
