"""Cards with measured results."""
