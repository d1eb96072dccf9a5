"""Watermark placement: experts move between tiers by how likely they are needed soon."""
