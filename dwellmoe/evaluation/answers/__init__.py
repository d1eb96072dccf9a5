"""Judges answers: extracts what was answered and compares it with the reference."""
