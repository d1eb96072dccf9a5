"""Fits the weights of learned eviction policies and predictors to recorded traces."""
