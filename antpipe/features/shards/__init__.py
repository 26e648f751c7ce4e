"""Computing an embedding in shards."""
