"""The compiled step of a cache and what it is made of."""
