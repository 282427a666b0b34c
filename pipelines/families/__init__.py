"""One file per model family, holding only what differs between families."""
