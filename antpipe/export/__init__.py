"""What other programs can use: vectors, search indices, networks, data sets in others' layouts, a model for a hub."""
