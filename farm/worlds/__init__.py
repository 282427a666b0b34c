"""Simulated worlds: the farm's own code in virtual time, and what must hold in the end."""
