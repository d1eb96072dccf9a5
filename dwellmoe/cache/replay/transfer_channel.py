"""Knows how far moves ahead of need have come on one way between two tiers; moves nothing."""

from math import ceil


class Link:
    """A way between two tiers, used ahead of need in the time that nobody else uses it: first come, first
    served.
    """

    def __init__(self, move_seconds: float) -> None:
        self.move_seconds = move_seconds
        self.left: dict[int, float] = {}  # under way -> seconds still to go

    def room(self, seconds: float) -> int:
        """How many more moves can begin in the next `seconds`."""
        free = seconds - sum(self.left.values())
        return ceil(free / self.move_seconds) if free > 0 and self.move_seconds > 0 else 0

    def add(self, number: int, seconds: float) -> None:
        self.left[number] = seconds

    def run(self, seconds: float) -> None:
        """So much time passes."""
        for number in list(self.left):
            done = min(seconds, self.left[number])
            seconds -= done
            self.left[number] -= done
            if self.left[number] <= 0:
                del self.left[number]

    def take(self, number: int) -> float:
        """The seconds that an expert still has to go, which is no longer under way; 0 if it is not."""
        return self.left.pop(number, 0.0)
