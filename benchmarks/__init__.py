"""Comparisons with the straightforward way, in alternation; each prints its table."""
