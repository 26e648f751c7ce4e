"""The method: model, losses, catalogue, batches, stages, ranking."""
