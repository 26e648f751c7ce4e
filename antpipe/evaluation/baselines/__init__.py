"""Recommenders without training."""
