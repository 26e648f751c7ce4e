"""From a request to a trained run in its folder."""
