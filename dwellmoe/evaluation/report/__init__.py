"""The report of an evaluation: its rows, its figures, its page and its files."""
