"""How experts compute while a model trains or runs with its adapter: grouped products, LoRA per expert."""
