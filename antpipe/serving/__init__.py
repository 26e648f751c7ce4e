"""Recommendations from an opened run: for one user or for all, filtered, diversified, explained."""
