"""Encoders: their names and where they come from."""
