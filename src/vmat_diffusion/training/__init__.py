"""Training of the dose model: encoded cases, losses, stages, checkpoints, validation."""
