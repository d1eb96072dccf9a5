"""Hands what was trained to other programs: routers alone, GGUF, adapters of other layouts, merged models."""
