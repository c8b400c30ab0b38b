"""The queue of plans: its jobs in the database, the process that makes one, what starts such processes."""
