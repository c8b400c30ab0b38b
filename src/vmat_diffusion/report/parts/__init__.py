"""What the report is made of, part by part."""
