"""What lies in a store: artifacts, journals, jobs, the ledger, checkpoints, and keeping house."""
