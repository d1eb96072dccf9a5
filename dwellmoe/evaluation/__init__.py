"""Measures what training bought: quality, locality and cache hits of several adapters on one loaded model."""
