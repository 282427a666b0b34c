"""Tensors: the stages as plain objects that also work in a notebook, without Ray."""
