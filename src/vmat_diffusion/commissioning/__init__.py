"""A beam model from water-tank scans: files read, made absolute, and fitted."""
