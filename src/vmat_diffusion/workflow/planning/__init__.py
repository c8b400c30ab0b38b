"""`plan`: what a run is asked for, the dose that it aims at, its search, its check and its files."""
