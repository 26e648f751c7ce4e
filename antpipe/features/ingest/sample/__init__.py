"""The generated shops."""
