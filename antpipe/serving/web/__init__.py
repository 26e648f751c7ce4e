"""The service: an opened run that answers requests over HTTP, in batches, and is reloaded when it is trained again."""
