"""What the server answers, a module for each part: pages, sessions, worklist, review, administration."""
