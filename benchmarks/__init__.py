"""Comparisons of antpipe with the straightforward way, taking turns; each prints a table."""
