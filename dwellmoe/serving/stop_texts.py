"""Ends a text that is being written before the first of some texts."""

from collections.abc import Sequence

from dwellmoe.evaluation.generation import before_stop


class StopTexts:
    """Takes a text piece by piece and hands on what surely comes before the first stop text; what may be the
    beginning of one is held back. `found` once there was one: nothing more is handed on.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        self._stops = tuple(stops)
        self._held = ""

    def add(self, piece: str) -> str:
        """What can be handed on now."""
        if self.found:
            return ""
        text = self._held + piece
        self.found = any(stop in text for stop in self._stops)
        if self.found:
            self._held = ""
            return before_stop(text, self._stops)
        kept = len(text) - self._length_of_beginning(text)
        self._held = text[kept:]
        return text[:kept]

    def rest(self) -> str:
        """What was held back, at the end of the text."""
        rest, self._held = self._held, ""
        return rest

    def _length_of_beginning(self, text: str) -> int:
        """Characters at the end of the text that a stop text may begin with."""
        lengths = (
            length
            for stop in self._stops
            for length in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:length])
        )
        return max(lengths, default=0)
