"""Training: copies of plans with known faults, which reviewers look for and are told of afterwards."""
