"""Settings of training with experts that are read from the checkpoint in every step."""

from dataclasses import dataclass

from dwellmoe.options import Settings, option


@dataclass
class StreamingSettings(Settings):
    """Where the frozen experts are while a model trains."""

    expert_budget: str | None = option(
        None,
        "read the frozen experts from the checkpoint in every step, with this much memory for them: bytes "
        "(6GiB), a share of all experts (25%), or experts a layer (8); at least all experts of one layer, "
        "twice that to read while computing; default: all experts are in memory",
    )
