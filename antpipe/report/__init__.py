"""Reports: what comparisons and runs found, as figures and as one self-contained page."""
