"""antpipe: from raw reviews and a catalogue to a sequential recommender whose transfer is judged."""

__version__ = "0.1.0"
