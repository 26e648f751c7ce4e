"""Published cures for negative transfer, one module each: what they change in the steps of a stage on a target."""
