"""The model that is served: one loaded model, and by name the adapters that requests choose from."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from dwellmoe.adapter_folder import BASE
from dwellmoe.data.context import context_tokens
from dwellmoe.data.wording import Wording, saved_wording, uses_chat_template
from dwellmoe.errors import UserError
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.load import load_with_adapters
from dwellmoe.loading import active_variant
from dwellmoe.offload import Engine, LiveRerouting, engine_of
from dwellmoe.routing import RouterTap
from dwellmoe.serving.command_line import Options
from dwellmoe.serving.settings import CacheSettings


class Variant(NamedTuple):
    """The model as one name of `/v1/models` asks for it."""

    name: str
    adapter: str
    """As the loaded model names it, or BASE."""
    wording: Wording
    rerouting: LiveRerouting | None


@dataclass(frozen=True)
class ServedModel:
    """A loaded model and its variants, by the names that requests use."""

    evaluated: EvaluatedModel
    variants: Mapping[str, Variant]
    created: int
    """Seconds since 1970 when it was loaded."""

    @property
    def tokenizer(self) -> Any:
        return self.evaluated.tokenizer

    @cached_property
    def engine(self) -> Engine | None:
        """None: all experts are in memory."""
        return engine_of(self.evaluated.model)

    @cached_property
    def context(self) -> int | None:
        """Positions that the model was made for; None where its configuration does not tell."""
        return context_tokens(self.evaluated.model.config)

    @cached_property
    def vocabulary(self) -> int:
        return self.evaluated.model.get_input_embeddings().weight.shape[0]

    @contextmanager
    def as_variant(self, variant: Variant, check: Callable[[], None]) -> Iterator[None]:
        """Within the block the model runs as a variant, and calls `check` before each MoE layer: what that
        raises ends the forward pass.
        """
        model, layers = self.evaluated.model, self.evaluated.moe_layers
        with ExitStack() as stack:
            stack.enter_context(active_variant(model, variant.adapter))
            if self.engine:  # an entry a request, of which there is no end
                stack.callback(self.engine.statistics.first_token_seconds.clear)
            for layer in layers:
                router = model.get_submodule(layer.router)
                stack.callback(router.register_forward_pre_hook(lambda *_: check()).remove)
            if variant.rerouting:
                stack.enter_context(RouterTap(model, layers, strategy=variant.rerouting))
            yield


def load_served_model(options: Options) -> ServedModel:
    """Loads the model of a command line with its adapters. Raises UserError."""
    adapters = options.adapters
    inside = {name: f"adapter_{number}" for number, name in enumerate(adapters)}  # a name may hold a dot
    evaluated = load_with_adapters(
        options.model,
        options.engine,
        {inside[name]: folder for name, folder in adapters.items()},
        allow_other_base=options.own.allow_other_base,
    )
    check_tokenizer(evaluated.tokenizer)
    evaluated = replace(evaluated, name=options.base_name)
    variants = {}
    for name, folder in {options.base_name: options.model.model_name, **adapters}.items():
        adapter = inside.get(name, BASE)
        wording = _wording(folder, evaluated.tokenizer)
        variants[name] = Variant(name, adapter, wording, _rerouting(evaluated, adapter, options.cache))
    return ServedModel(evaluated, variants, int(time.time()))


def check_tokenizer(tokenizer: Any) -> None:
    """Raises UserError for a tokenizer that cannot decode token by token."""
    if getattr(tokenizer, "_tokenizer", None) is None:
        raise UserError(
            f"the tokenizer in '{tokenizer.name_or_path}' ({type(tokenizer).__name__}) is not a fast one "
            "(tokenizer.json): its answers cannot be streamed"
        )


def _wording(folder: str, tokenizer: Any) -> Wording:
    """What trained a folder's adapter or model; without it, the chat template where there is one."""
    found = saved_wording(folder) or Wording(chat_template=True)
    return replace(found, chat_template=uses_chat_template("auto", found.chat_template, tokenizer))


def _rerouting(evaluated: EvaluatedModel, adapter: str, cache: CacheSettings) -> LiveRerouting | None:
    if not cache.routing_strategy:
        return None
    model, engine = evaluated.model, engine_of(evaluated.model)
    assert engine is not None, "re-routing needs an engine"
    with active_variant(model, adapter):
        given = cache.routing_strategy, cache.reroute_prefill
        return LiveRerouting(model, evaluated.moe_layers, engine, *given)
