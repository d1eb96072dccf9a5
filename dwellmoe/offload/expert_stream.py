"""Reads experts of a checkpoint into a limited number of slots, in the order in which training needs them.

While one layer computes, the layers of the next visits are read ahead. The expert whose layer is visited
again last leaves first; so the last layers of a forward pass are still there when the backward pass begins.
"""

import itertools
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from queue import SimpleQueue

from dwellmoe.cache.flat_id import FlatId
from dwellmoe.families import MoeLayer
from dwellmoe.families.not_finite import check_finite
from dwellmoe.offload.expert_layout import Expert, ExpertLayout, into_model_order, plain
from dwellmoe.offload.expert_weights import ExpertWeights, Piece
from dwellmoe.offload.io.readers import Load, Readers
from dwellmoe.offload.io.storage import REQUEST_BYTES, Storage
from dwellmoe.offload.slots import Staging, page_offset_of
from dwellmoe.offload.visit_order import VisitOrder


class _Held:
    """An expert in its slot. `load` is None once its weights are there, in the model's order."""

    def __init__(self, slot: int, expert: Expert, load: Load) -> None:
        self.slot, self.expert = slot, expert
        self.load: Load | None = load

    @property
    def is_read(self) -> bool:
        return self.load is None or self.load.arrived.is_set()


class ExpertStream:
    """The experts of a model in slots in host memory, as the checkpoint has them.

    layers   the model's MoE layers
    layouts  [L]: of their experts as they are stored
    slots    at least as many as a layer has experts

    `visit` a layer, take each `expert` of it, `release` those that this visit no longer needs.
    """

    def __init__(
        self,
        weights: ExpertWeights,
        layers: Sequence[MoeLayer],
        layouts: Sequence[ExpertLayout],
        slots: int,
        storage: Storage,
        readers: int,
        pinned: bool = False,
    ) -> None:
        counts = [layer.num_experts for layer in layers]
        assert slots >= max(counts)
        self.weights, self.storage, self.layers, self.layouts = weights, storage, layers, layouts
        self.order = VisitOrder(len(layers))
        self.read_bytes = 0
        """Bytes of all experts whose reading has begun."""
        self._slots = Staging(layouts, slots, pinned)
        # What is read ahead here is needed for certain, so it may take all readers.
        self._readers = Readers(storage, readers, ahead_threads=readers, ahead_bytes=REQUEST_BYTES)
        ids = map(FlatId, itertools.count())
        self._ids = [list(itertools.islice(ids, count)) for count in counts]
        self._layer_of = [layer for layer, count in enumerate(counts) for _ in range(count)]
        self._used = [self.in_file_order(layer, range(count)) for layer, count in enumerate(counts)]
        """[L]: the experts that each layer needed when it was last visited; all of them at first."""
        self._held: dict[FlatId, _Held] = {}
        self._in_use: set[FlatId] = set()
        self._known_finite: set[FlatId] = set()
        closing = ExitStack()
        closing.callback(storage.close)
        closing.callback(self._readers.close)
        self.close = weakref.finalize(self, closing.close)

    @property
    def slot_bytes(self) -> int:
        """Bytes of all slots."""
        return self._slots.nbytes

    def pieces(self, layer: int, expert: int) -> tuple[Piece, ...]:
        """Where the bytes of an expert lie."""
        return self.weights.pieces[self._ids[layer][expert]]

    def in_file_order(self, layer: int, experts: Sequence[int]) -> list[int]:
        """Experts of a layer as they follow one another in the checkpoint."""
        return sorted(experts, key=lambda expert: self.pieces(layer, expert)[0][:2])

    def visit(self, layer: int, experts: Sequence[int], training: bool, backward: bool) -> list[int]:
        """Begins to read those of the experts that are not there; gives them in the order to compute in.

        training  whether a backward pass will follow this forward pass, or is under way
        """
        self.order.enter(layer, training, backward)
        needed = self._used[layer] = self.in_file_order(layer, experts)
        self._in_use = {self._ids[layer][expert] for expert in needed}
        for expert in needed:
            if self._ids[layer][expert] not in self._held:
                self._begin_read(self._ids[layer][expert], self._free_slot(), urgent=True)
        self._read_ahead()
        return needed

    def expert(self, layer: int, expert: int) -> Expert:
        """The weights of an expert of the layer that is visited. Waits for them.

        Raises ReadFault, and UserError for weights that are not finite.
        """
        flat_id = self._ids[layer][expert]
        held = self._held[flat_id]
        if held.load is not None:
            self._finish(flat_id, held, held.load)
        return held.expert

    def _finish(self, flat_id: FlatId, held: _Held, load: Load) -> None:
        if not load.arrived.is_set():
            self._readers.submit([load])
            load.arrived.wait()
        if load.error is not None:
            self._give_back(flat_id)
            raise load.error
        into_model_order(held.expert, self.weights.parts[self._layer_of[flat_id]])
        held.load = None
        if flat_id not in self._known_finite:
            self._check_finite(flat_id, held.expert)

    def _check_finite(self, flat_id: FlatId, expert: Expert) -> None:
        layer, path = (
            self._layer_of[flat_id],
            self.weights.shards.paths[self.weights.pieces[flat_id][0].shard],
        )
        name = f"{self.layers[layer].experts}, expert {self._ids[layer].index(flat_id)},"
        check_finite([(name, plain(expert.up)), (name, plain(expert.down))], f"'{path}'")
        self._known_finite.add(flat_id)

    def release(self, layer: int, expert: int) -> None:
        """This visit no longer needs an expert, whose slot may be taken for a layer that comes earlier."""
        self._in_use.discard(self._ids[layer][expert])
        self._read_ahead()

    def _read_ahead(self) -> None:
        for layer in self.order.upcoming():
            for expert in self._used[layer]:
                flat_id = self._ids[layer][expert]
                if flat_id in self._held:
                    continue
                slot = self._slot_for(self.order.steps_until(layer))
                if slot is None:
                    return
                self._begin_read(flat_id, slot, urgent=False)

    def _begin_read(self, flat_id: FlatId, slot: int, urgent: bool) -> None:
        layer, pieces = self._layer_of[flat_id], self.weights.pieces[flat_id]
        page_offset = page_offset_of(pieces, self.layouts[layer].itemsize)
        load = Load(flat_id, self._slots.spans(slot, page_offset, pieces), SimpleQueue())
        self._held[flat_id] = _Held(slot, self._slots.expert(slot, layer, page_offset), load)
        self.read_bytes += load.nbytes
        self._readers.submit([load], urgent)

    def _free_slot(self) -> int:
        """A slot for an expert that is needed now."""
        while (slot := self._slot_for(0)) is None:
            under_way = (held for flat_id, held in self._held.items() if flat_id not in self._in_use)
            load = next(held.load for held in under_way if held.load is not None)
            load.arrived.wait()
        return slot

    def _slot_for(self, steps: int) -> int | None:
        """A slot for an expert that is needed in `steps` visits: a free one, or that of an expert which is
        needed later; None where there is none.
        """
        if not self._slots.free:
            others = (each for each, held in self._held.items() if held.is_read and each not in self._in_use)
            last = max(others, key=self._steps_until, default=None)
            if last is None or self._steps_until(last) <= steps:
                return None
            self._give_back(last)
        return self._slots.free.pop()

    def _steps_until(self, flat_id: FlatId) -> int:
        return self.order.steps_until(self._layer_of[flat_id])

    def _give_back(self, flat_id: FlatId) -> None:
        self._slots.free.append(self._held.pop(flat_id).slot)
