"""Tables of any shop."""
