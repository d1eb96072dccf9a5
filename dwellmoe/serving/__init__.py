"""An OpenAI-style HTTP server over one loaded model and its adapters: transformers' request handlers, one
generation at a time, and the figures of the expert cache.
"""
