"""Vectors made elsewhere."""
