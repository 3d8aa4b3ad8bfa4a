"""One published method = one file."""
