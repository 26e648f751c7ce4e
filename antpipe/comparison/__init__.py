"""Several arms with equal seeds and budget, and the verdict on transfer."""
