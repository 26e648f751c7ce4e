"""The feature side: one module a stage; nothing here knows of models or training."""
