"""Stage `ingest`: a catalogue and its interactions become a domain of the store."""
