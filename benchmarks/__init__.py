"""Benchmarks of antpipe against straightforward implementations, taking turns; each prints a table."""
