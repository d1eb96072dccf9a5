"""LongCat-Flash: the router reads its matrix out of a Linear module that it never calls."""

from dwellmoe.families.base import MoeFamily

FAMILY = MoeFamily(model_types=("longcat_flash",), lora_on_router=False)
