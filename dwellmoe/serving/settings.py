"""Settings of the server and of the chat. Without torch."""

import os
from dataclasses import dataclass

from dwellmoe.errors import UserError
from dwellmoe.options import Settings, option, split_list
from dwellmoe.settings.engine import EngineSettings

API_KEY = "DWELLMOE_API_KEY"
"""Variable of the environment that gives `--api_key`."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass
class ServedSettings(Settings):
    """Which adapters run beside the model, and how long answers are."""

    adapter: str = option(
        "",
        "folder of an adapter, which has the folder's name unless it is given as NAME=FOLDER; several: give "
        "the option again, or a comma list",
    )
    allow_other_base: bool = option(False, "run an adapter that was trained on another base model")
    max_new_tokens: int = option(
        1024,
        "most tokens of an answer, where a request does not say",
        least=1,
        most=2**20,
    )

    @property
    def adapters(self) -> list[str]:
        return split_list(self.adapter)


@dataclass
class ServingSettings(ServedSettings):
    """What is served, where, and to how many at once."""

    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0: all of this machine's, for others too")
    port: int = option(8000, "port to listen at; 0: any that is free", least=0, most=65_535)
    api_key: str = option(
        "",
        "token that clients must send (Authorization: Bearer TOKEN); empty: none. Others on this machine see "
        f"it in the list of processes: the variable {API_KEY} hides it",
    )
    max_waiting: int = option(
        16,
        "requests that may wait for the running one; more are refused (429)",
        least=0,
        most=100_000,
    )
    stop_seconds: float = option(
        10.0,
        "on a stop signal, seconds for the running answer to end by itself before it is cut",
        least=0,
        most=86_400,
    )

    def __post_init__(self):
        super().__post_init__()
        self.api_key = self.api_key or os.environ.get(API_KEY, "")
        if not self.api_key.isascii() or any(map(str.isspace, self.api_key)):
            raise UserError(f"--api_key (or {API_KEY}): must be of ASCII characters without spaces")


@dataclass
class ChatSettings(ServedSettings):
    """How a chat in the terminal replies."""

    temperature: float = option(0.0, "sampling temperature; 0: always the likeliest token", least=0, most=100)


@dataclass
class CacheSettings(EngineSettings):
    """The cache of the model's experts, and re-routing by what it holds."""

    expert_budget: str = option(
        "",
        "run with the experts in a cache of this size: slots a layer (8), percent (25%), or bytes (6GiB, "
        "buffers included); empty: all experts in memory",
    )
    routing_strategy: str | None = option(
        None, "re-route by this strategy (name:option=value,...), e.g. margin; needs --expert_budget"
    )
    reroute_prefill: bool = option(False, "also re-route prompt tokens, not only decoded ones")
