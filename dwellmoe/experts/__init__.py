"""How experts compute while a model trains or runs with its adapter: LoRA per expert, frozen weights in any
form.
"""

from dwellmoe.experts.implementation import use_expert_lora

__all__ = ["use_expert_lora"]
