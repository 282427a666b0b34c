"""A stand-in for the denoise stage."""

from .fixed import stand_in

Stage = stand_in("denoise")
