"""Methods beyond ANT: training that combines domains or runs (docs/method.md, "Beyond ANT")."""
