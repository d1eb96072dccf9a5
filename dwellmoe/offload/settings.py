"""Settings of the offloading engine: memory for experts, policies, prefetch, reading."""

from dataclasses import dataclass

from dwellmoe.options import option


@dataclass
class EngineSettings:
    """The memory for experts of the offloading engine. Sizes: slots (8), percent (25%), or bytes (6GiB)."""

    expert_budget: str = option(
        "25%", "memory for experts: slots a layer, percent of a layer's experts, or bytes, buffers included"
    )
    decode_policy: str = option("lru", "eviction policy of the decode cache, of expert_cache/policies/")
    prefill_handoff: str = option(
        "recent:tokens=8", "what a prompt leaves in the decode cache: shared, none, ..."
    )
    prefill_policy: str = option(
        "", "eviction policy of the prefill buffer between chunks; empty: it forgets what was used"
    )
    prefill_buffer: int = option(8, "slots that a prompt's experts stream through")
    prefetch_budget: int = option(2, "slots for experts predicted for the next layer; 0: none")
    prefetch_predictor: str = option(
        "gate_ahead",
        "who foresees them in decoding: gate_ahead (the next layer's gate), scoutgate:weights=FILE, "
        "gate_ahead+scoutgate:weights=FILE,share=0.75, or a predictor of expert_cache/predictors/",
    )
    placement_predictor: str = option(
        "",
        "beside habits, who foresees a token's later layers for --decode_policy placement: "
        "as --prefetch_predictor; empty: nobody",
    )
    ram_budget: str = option("", "size of a second tier in RAM, below the device; empty: none")
    io: str = option("direct", "direct: reads past the page cache; buffered: through it")
    readers: int = option(4, "threads that read experts")
    packed: str = option("", "folder of `dwellmoe pack`: experts are read there, one read each")
