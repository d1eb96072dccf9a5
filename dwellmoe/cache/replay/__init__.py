"""Replays recorded traces: hit rates, curves, reuse distances, stall time, memory plans."""
