"""Judges answers: extracts the answer from generated text and compares it with the reference."""
