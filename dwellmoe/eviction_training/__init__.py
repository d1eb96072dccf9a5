"""Fits the weights of learned eviction to recorded traces; `expert_cache` serves what it writes."""
