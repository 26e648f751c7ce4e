"""What antpipe offers: the functions that `import antpipe` shows and that the command line calls."""

from antpipe.api import data, exports, features, judging, overview, reporting, runs, serving, settings, training, upkeep

__all__ = [
    "data",
    "exports",
    "features",
    "judging",
    "overview",
    "reporting",
    "runs",
    "serving",
    "settings",
    "training",
    "upkeep",
]
