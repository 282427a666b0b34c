"""Stages of fixed duration: they sleep instead of computing, so that only the farm's own work is left."""
