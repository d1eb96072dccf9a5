"""One file a figure; each draws what it is told, computes no result and imports no torch."""
