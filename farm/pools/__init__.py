"""Pools: which stages run on which hardware, with which options, split over how many ranks."""
