"""Settings of the model: which checkpoint, in which type."""

from dataclasses import dataclass

from dwellmoe.options import check_choice, option

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class ModelSettings:
    """Which model, under which label."""

    model_name: str = option("models/tiny-olmoe", "folder of a checkpoint, or its name on the hub")
    model_key: str = option("", "label in the folders of logs and results, e.g. _deepseek_16b")
    moe_module_name: str | None = option(
        None, "attribute of the MoE block in a decoder layer, checked if given"
    )
    dtype: str = option(
        "auto", f"type of the weights: {', '.join(DTYPES)}; auto is the checkpoint's, float32 on a CPU"
    )
    experts_implementation: str | None = option(
        None, "transformers' way to run the experts: eager, grouped_mm, ..."
    )
    trust_remote_code: bool = option(False, "run modelling code that the checkpoint brings along")

    def __post_init__(self):
        check_choice("dtype", self.dtype, DTYPES)
