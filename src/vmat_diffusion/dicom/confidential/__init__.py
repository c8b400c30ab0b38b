"""confidential."""
