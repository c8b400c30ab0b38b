"""Plans as samples: fluence predicted in the beam's-eye view, held to physics, swept by leaves."""
