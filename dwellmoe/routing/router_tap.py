"""Reads and replaces what routers choose while a model runs.

Letters: T tokens (batch and time flattened, batch outermost), E experts, K chosen experts a token.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer, family_of


class RouterOutput(NamedTuple):
    """What one router returned in one forward pass."""

    layer: MoeLayer
    logits_TE: Tensor
    """Raw: before any softmax or sigmoid, with its gradient."""
    weights_TK: Tensor
    indices_TK: Tensor
    """The experts that run, by the router's choice or the strategy's; not always sorted.

    -1 is a slot that the strategy left empty.
    """


Observer = Callable[[RouterOutput], None]
Strategy = Callable[[RouterOutput], tuple[Tensor, Tensor]]


def router_order(weights_TK: Tensor, indices_TK: Tensor) -> tuple[Tensor, Tensor]:
    """The same choice, largest routing weight first: some families return it unsorted."""
    weights_TK, order_TK = weights_TK.sort(dim=-1, descending=True, stable=True)
    return weights_TK, indices_TK.gather(-1, order_TK)


def runnable(indices_TK: Tensor) -> Tensor:
    """Indices that every experts module can run: an empty slot names the row's first expert once more."""
    return torch.where(indices_TK < 0, indices_TK[..., :1], indices_TK)


class RouterTap:
    """A `with` block that shows router outputs to observers and lets at most one strategy replace the choice.

    Only forward passes inside the block count. Observers do not see what gradient checkpointing recomputes in
    a backward pass. The strategy does run again there, since the recomputation must repeat the forward pass:
    with both in use, keep the backward pass inside the block. Open the block anew for each step: hooks
    registered late run last, after those of DeepSpeed, whose gathering of weights the logits then carry.

    `model` is the one that `moe_layers` was found in. A strategy maps a RouterOutput to (weights_TK,
    indices_TK), with -1 and weight 0 for a slot that it leaves empty; observers see its choice. Raises
    UserError for an output that is not a router's.
    """

    def __init__(
        self,
        model: nn.Module,
        moe_layers: Iterable[MoeLayer],
        observers: Iterable[Observer] = (),
        strategy: Strategy | None = None,
    ):
        self.model = model
        self.moe_layers = list(moe_layers)
        self.observers = list(observers)
        self.strategy = strategy
        self._family = family_of(model)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "RouterTap":
        assert not self._handles, "this tap is already open"
        try:
            for layer in self.moe_layers:
                router = self.model.get_submodule(layer.router)
                self._handles.append(router.register_forward_hook(self._hook(layer)))
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self._close()

    def _close(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, layer: MoeLayer) -> Callable:
        def after_router(_router: nn.Module, _inputs: tuple, output: tuple) -> tuple | None:
            seen = self._read(layer, output)
            if self.strategy is not None:
                seen = seen._replace(**self._replacement(seen))
                output = self._family.write(output, seen.weights_TK, runnable(seen.indices_TK))
            if not in_backward():
                for observer in self.observers:
                    observer(seen)
            return output if self.strategy is not None else None

        return after_router

    def _read(self, layer: MoeLayer, output: tuple) -> RouterOutput:
        try:
            # What reading saves for the backward pass is hidden from gradient checkpointing, whose
            # recomputation may run without this tap and counts what is saved.
            with saved_tensors_hooks(_unchanged, _unchanged):
                parts = self._family.read(output, layer.top_k)
                return RouterOutput(layer, *(part.flatten(0, -2) for part in parts))
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            found = type(output).__name__
            raise UserError(
                f"router '{layer.router}' returned a {found}: expected (logits, weights, indices)"
            ) from error

    def _replacement(self, seen: RouterOutput) -> dict[str, Tensor]:
        assert self.strategy is not None
        weights_TK, indices_TK = self.strategy(seen)
        if weights_TK.shape != indices_TK.shape or len(indices_TK) != len(seen.indices_TK):
            shapes = tuple(weights_TK.shape), tuple(indices_TK.shape)
            raise ValueError(
                f"strategy returned shapes {shapes}: expected two like {tuple(seen.indices_TK.shape)}"
            )
        return {"weights_TK": weights_TK, "indices_TK": indices_TK}


def _unchanged(saved: Tensor) -> Tensor:
    return saved


def in_backward() -> bool:
    """Whether autograd is walking a graph in this thread, so that a forward call is a recomputation."""
    return torch._C._current_graph_task_id() != -1
