"""What a service decides: who may ask, for how much, and what a submission is."""
