"""Amazon reviews and metadata as published."""
