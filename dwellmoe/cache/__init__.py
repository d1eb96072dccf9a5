"""Decides which experts are resident: traces, policies, the cache, its simulator. Numbers only, moves no
weights.
"""
