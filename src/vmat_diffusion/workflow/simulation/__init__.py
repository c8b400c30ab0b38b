"""Training cases of our own: plans of the search, and doses of free fluence."""
