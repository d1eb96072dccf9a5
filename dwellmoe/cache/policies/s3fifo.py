"""S3-FIFO (Yang et al., SOSP 2023): a small queue on trial, a main queue, and a memory of who failed the
trial.
"""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel import linked_list
from dwellmoe.errors import UserError

NOWHERE, SMALL, MAIN, GHOST = -1, 0, 1, 2
MOST_USES = 3  # counted


class S3fifo(NamedTuple):
    """Victim: the oldest on trial that was used at most once, or the oldest in main that was not used since
    it last moved.

    `small` is the share of the capacity that is on trial.
    """

    queues: linked_list.LinkedList  # small, main, ghost
    where: np.ndarray  # int8 [caches, E]
    uses: np.ndarray  # int8 [caches, E]: since it was loaded or moved, at most 3
    length: np.ndarray  # int64 [caches, 3]
    room: np.ndarray  # int64 [caches, 2]: of the small queue, of the ghost

    lookahead = "none"

    @classmethod
    def allocate(cls, caches: int, experts: int, capacity: np.ndarray, *, small: float = 0.1):
        if not 0 < small < 1:
            raise UserError(f"s3fifo: small must be a share between 0 and 1, got {small}")
        on_trial = np.maximum(1, (capacity * small).astype(np.int64))
        queues = linked_list.LinkedList.allocate(caches, experts, rings=3)
        where, uses = np.full((caches, experts), NOWHERE, np.int8), np.zeros((caches, experts), np.int8)
        return cls(
            queues, where, uses, np.zeros((caches, 3), np.int64), np.stack([on_trial, capacity - on_trial], 1)
        )

    def clear(self, cache):
        linked_list.clear(self.queues, cache)
        self.where[cache, :] = NOWHERE
        self.length[cache, :] = 0

    def use(self, cache, expert, fresh, now):
        if fresh:
            self.uses[cache, expert] = 0
            linked_list.move(self, cache, expert, MAIN if self.where[cache, expert] == GHOST else SMALL)
        else:
            self.uses[cache, expert] = min(self.uses[cache, expert] + 1, MOST_USES)

    def victim(self, cache, guard, now):
        while True:
            tried = linked_list.first_unguarded(self.queues, cache, SMALL, guard, now.step)
            settled = linked_list.first_unguarded(self.queues, cache, MAIN, guard, now.step)
            nobody_settled = settled == linked_list.head(self.queues, MAIN)
            crowded = self.length[cache, SMALL] >= self.room[cache, 0]
            if tried != linked_list.head(self.queues, SMALL) and (crowded or nobody_settled):
                if self.uses[cache, tried] <= 1:
                    linked_list.move(self, cache, tried, GHOST)
                    if self.length[cache, GHOST] > self.room[cache, 1]:
                        linked_list.move(self, cache, linked_list.first(self.queues, cache, GHOST), NOWHERE)
                    return tried
                self.uses[cache, tried] = 0
                linked_list.move(self, cache, tried, MAIN)
            elif self.uses[cache, settled] > 0:
                self.uses[cache, settled] -= 1
                linked_list.move(self, cache, settled, MAIN)
            else:
                linked_list.move(self, cache, settled, NOWHERE)
                return settled

    def drop(self, cache, expert):
        linked_list.move(self, cache, expert, NOWHERE)


policy = S3fifo
