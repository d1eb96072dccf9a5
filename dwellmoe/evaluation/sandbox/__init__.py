"""Runs generated programs isolated from the machine."""
