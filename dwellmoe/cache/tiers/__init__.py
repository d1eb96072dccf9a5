"""Caches made of several: prefill and decode, device and RAM, watermark placement."""
