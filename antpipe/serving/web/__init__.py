"""The service: one opened run that answers requests over HTTP, in batches, and is replaced when it is trained again."""
