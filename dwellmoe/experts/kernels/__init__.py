"""Compiled passes that dequantise matrices in low bits or multiply by them, on the threads of torch."""
