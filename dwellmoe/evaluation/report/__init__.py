"""Turns what was measured into rows, a report and its figures."""
