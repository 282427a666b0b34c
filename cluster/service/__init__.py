"""The farm as a service: what is done for every door that speaks HTTP."""
