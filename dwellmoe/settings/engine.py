"""Settings of the offloading engine: memory for experts, policies, prefetch, reading."""

from dataclasses import dataclass

from dwellmoe.options import Settings, option

MOST_SLOTS = 65_535
"""More slots for experts than any model has experts."""


@dataclass
class EngineSettings(Settings):
    """Where and how an offloaded model keeps its experts."""

    expert_budget: str = option(
        "25%",
        "memory for experts on the device: experts a layer (8), a share of each layer's experts (25%), or "
        "bytes (6GiB), which include the prefill buffer and the prefetch slots",
    )
    decode_policy: str = option(
        "lru",
        "eviction policy of the decode cache: a policy of dwellmoe/cache/policies/, or placement (experts "
        "placed on the device and in RAM by their probability of use)",
    )
    prefill_handoff: str = option(
        "recent:tokens=8",
        "which experts of a prompt stay in the decode cache: none (the cache is left alone), recent:tokens=N "
        "(those that the last N prompt tokens used most), lrfu:decay=D (those used most, a use counting D "
        "times less with each token since), pool (those that the whole prompt used most), shared (prompts "
        "use the decode cache as decoding does)",
    )
    prefill_policy: str = option(
        "",
        "eviction policy of the prefill buffer, which then keeps experts from one chunk of the prompt to the "
        "next; empty: each expert is dropped once it is used",
    )
    prefill_buffer: int = option(
        8,
        "slots beside the decode cache, shared by all layers, through which a prompt's experts pass",
        least=1,
        most=MOST_SLOTS,
    )
    prefetch_budget: int = option(
        2,
        "slots for experts that are read before the next layer needs them; 0: no prefetch",
        least=0,
        most=MOST_SLOTS,
    )
    prefetch_predictor: str = option(
        "gate_ahead",
        "what predicts the next layer's experts while decoding: gate_ahead (that layer's gate on this "
        "layer's hidden states), scoutgate:weights=FILE (a small network on token ids; FILE is written by "
        "`dwellmoe simulate predict --scoutgate_out FILE`), gate_ahead+scoutgate:weights=FILE,share=0.75 (a "
        "mean of both), or a predictor of dwellmoe/cache/predictors/",
    )
    placement_predictor: str = option(
        "",
        "with --decode_policy placement, what predicts the experts of the running token's later layers; "
        "same choices as --prefetch_predictor; empty: past routing alone decides",
    )
    ram_budget: str = option(
        "",
        "size of a second tier in RAM for experts evicted from the device: experts in all layers together, "
        "percent, or bytes; empty: none",
    )
    io: str = option(
        "direct",
        "direct: read past the page cache; buffered: read through it",
        choices=("direct", "buffered"),
    )
    readers: int = option(4, "threads that read experts", least=1, most=256)
    dense_format: str = option(
        "",
        "form in memory of the matrices that every token passes (attention, dense and shared MLPs, output "
        "layer): int8, int4 (or int4:group=32, 64, 128), nf4, mxfp4; empty: as --dtype says",
    )
    packed: str = option(
        "",
        "folder of a packed model of the same experts (`dwellmoe pack`), to read them from there; the rest "
        "of the model is that of --model_name",
    )
    verify_reads: bool = option(
        False,
        "compare each expert of a packed model with its checksum whenever it is read: a damaged one ends the "
        "run, and never changes a token",
    )
