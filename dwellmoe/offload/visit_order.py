"""In which order training visits the layers of a model, and when each layer is visited again."""


class VisitOrder:
    """A training step goes forward through all layers and back down to the lowest that gets gradients; then
    the next batch begins. Without gradients each forward pass is followed by another one.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.lowest = layers
        """The lowest layer that the backward pass visits; `layers` while none is known."""
        self._steps_until = list(range(1, layers + 1))

    def enter(self, layer: int, training: bool, backward: bool) -> None:
        """A layer is visited now."""
        if backward:
            self.lowest = min(self.lowest, layer)
        down = reversed(range(self.lowest, self.layers)) if training else ()
        visits = [*range(self.layers), *down]
        now = 2 * self.layers - 1 - layer if backward else layer
        for step in range(len(visits), 0, -1):
            self._steps_until[visits[(now + step) % len(visits)]] = step

    def expect_backward(self, layer: int, gradient: bool) -> None:
        """In a forward pass of training: whether a layer's experts, and so the layer, take part in its
        backward pass. If not, no layer below does.
        """
        if gradient:
            self.lowest = min(self.lowest, layer)
        elif self.lowest <= layer:
            self.lowest = self.layers

    def steps_until(self, layer: int) -> int:
        """How many visits from now a layer is visited again: 1 for the next one."""
        return self._steps_until[layer]

    def upcoming(self) -> list[int]:
        """All layers, in the order of their next visit."""
        return sorted(range(self.layers), key=self.steps_until)
