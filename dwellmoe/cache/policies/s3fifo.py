"""S3-FIFO (Yang et al., SOSP 2023): a small queue on trial, a main queue, and a list of failed trials."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel import linked_list
from dwellmoe.cache.policies.base import Shape
from dwellmoe.errors import UserError

NOWHERE, SMALL, MAIN, GHOST = -1, 0, 1, 2
MOST_USES = 3  # counted


class S3fifo(NamedTuple):
    """Evicts the oldest on trial if used at most once, or the oldest in main not used since it moved.

    `small` is the share of the capacity that is on trial.
    """

    queues: linked_list.LinkedList  # small, main, ghost
    where: np.ndarray  # int8 [caches, E]
    uses: np.ndarray  # int8 [caches, E]: since it was loaded or moved, at most 3
    length: np.ndarray  # int64 [caches, 3]
    room: np.ndarray  # int64 [caches, 2]: of the small queue, of the ghost

    lookahead = "none"

    @classmethod
    def allocate(cls, shape: Shape, *, small: float = 0.1):
        if not 0 < small < 1:
            raise UserError(f"s3fifo: small must be a share between 0 and 1, got {small}")
        on_trial = np.maximum(1, (shape.capacity * small).astype(np.int64))
        return cls(
            queues=linked_list.LinkedList.allocate(*shape.per_expert, rings=3),
            where=np.full(shape.per_expert, NOWHERE, np.int8),
            uses=np.zeros(shape.per_expert, np.int8),
            length=np.zeros((shape.caches, 3), np.int64),
            room=np.stack([on_trial, shape.capacity - on_trial], 1),
        )

    def reset(self, cache):
        linked_list.clear(self.queues, cache)
        self.where[cache, :] = NOWHERE
        self.length[cache, :] = 0

    def on_access(self, cache, expert, inserted, now):
        if inserted:
            self.uses[cache, expert] = 0
            linked_list.move(self, cache, expert, MAIN if self.where[cache, expert] == GHOST else SMALL)
        else:
            self.uses[cache, expert] = min(self.uses[cache, expert] + 1, MOST_USES)

    def evict(self, cache, protected, now):
        while True:
            tried = linked_list.first_unprotected(self.queues, cache, SMALL, protected, now)
            settled = linked_list.first_unprotected(self.queues, cache, MAIN, protected, now)
            main_empty = settled == linked_list.head(self.queues, MAIN)
            crowded = self.length[cache, SMALL] >= self.room[cache, 0]
            if tried != linked_list.head(self.queues, SMALL) and (crowded or main_empty):
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

    def remove(self, cache, expert):
        linked_list.move(self, cache, expert, NOWHERE)


policy = S3fifo
