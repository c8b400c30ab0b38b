"""Structure sets: regions by their names, contours to masks and back, the body, prescribed densities."""
