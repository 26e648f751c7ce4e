"""What a trained run is worth: full ranking, slices, vectors, recommendations, baselines."""
