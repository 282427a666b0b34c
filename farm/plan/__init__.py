"""From a film to the graph of its tasks. Pure functions."""
