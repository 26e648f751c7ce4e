"""Searching the settings of a run on the validation split: `antpipe tune`."""
