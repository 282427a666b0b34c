"""The doors: the command line, and what connects it to a cluster."""
