"""What training adds: objectives of locality, balance, the profile that picks layers, elastic LoRA."""
