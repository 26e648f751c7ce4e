"""Files of processed data sets."""
