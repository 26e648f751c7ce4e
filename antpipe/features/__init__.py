"""The feature side: one module per stage; nothing here depends on models or training."""
