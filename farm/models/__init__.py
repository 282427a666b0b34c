"""Models: their cards, their checkpoints, and where these are fetched from."""
