"""Copies of experts between host and device: on a stream of their own where the device is a GPU, in step with
what computes with the slots.
"""

from typing import Any

import torch

from dwellmoe.offload.expert_layout import Expert, copy_expert


class ExpertCopies:
    """On a CPU a copy is done at once, and all waiting is for nothing and costs nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._last_use: dict[int, Any] = {}
        """Device slot -> event after the last computation with what it held."""
        self._last_copy: dict[int, Any] = {}
        """Staging slot -> event after the copy out of it."""

    def copy_in(self, source: Expert, target: Expert, slot: int) -> None:
        """Copies weights into a device slot, once nothing computes with its old content."""
        if self._stream is None:
            copy_expert(source, target)
            return
        last_use = self._last_use.pop(slot, None)
        with torch.cuda.stream(self._stream):
            if last_use is not None:
                self._stream.wait_event(last_use)
            copy_expert(source, target)
        torch.cuda.current_stream().wait_stream(self._stream)

    def slot_is_free(self, slot: int) -> None:
        """Computations that were queued up to now may still read this device slot."""
        if self._stream:
            self._last_use[slot] = torch.cuda.current_stream().record_event()

    def staging_is_read(self, staging_slot: int) -> None:
        """The copy queued last reads this staging slot."""
        if self._stream:
            self._last_copy[staging_slot] = self._stream.record_event()

    def wait_for_staging(self, staging_slot: int) -> None:
        """Returns when the staging slot may be overwritten."""
        if event := self._last_copy.pop(staging_slot, None):
            event.synchronize()

    def wait_for_computation(self) -> None:
        """Copies from now on come after all computations and copies down to RAM queued so far."""
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream())

    def synchronize(self) -> None:
        if self._stream:
            torch.cuda.synchronize(self.device)
