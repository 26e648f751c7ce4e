"""The same batches, losses and ranks in fixed shapes, for a GPU."""
