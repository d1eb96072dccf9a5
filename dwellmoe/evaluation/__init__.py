"""Measures quality, routing locality and cache hits of several adapters on one loaded model."""
