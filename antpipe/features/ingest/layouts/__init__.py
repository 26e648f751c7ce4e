"""Files of data sets that UniSRec, MISSRec and ANT processed."""
