"""The figures, one file each: a `draw` function from rows of results to a matplotlib figure; no torch."""
