"""Training for locality: objectives, loss and callback, balance, elastic LoRA, targets."""
