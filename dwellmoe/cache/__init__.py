"""Which experts are resident: traces, eviction policies, caches and their simulator; needs no torch."""
