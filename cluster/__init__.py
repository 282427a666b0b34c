"""The doors: the command line and HTTP, what connects them to Ray, and the client."""
