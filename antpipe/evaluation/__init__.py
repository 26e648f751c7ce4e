"""What a trained run is worth: ranking, slices, recommendations, baselines."""
