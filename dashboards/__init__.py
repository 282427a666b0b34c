"""Read-only views of the ledger and of finished films."""
