"""Fits `static`: counts how often each expert of each layer is used."""

import numpy as np

from dwellmoe.cache.progress import Progress
from dwellmoe.eviction_training.fit import FitSettings, Fitted
from dwellmoe.eviction_training.requests import Split
from dwellmoe.eviction_training.tables import requested


def fit(split: Split, settings: FitSettings, progress: Progress | None = None) -> Fitted:
    """Counts the training requests; nothing is chosen, so the validation requests judge alone."""
    trace = split.train
    counts = [
        np.bincount(requested(trace, layer)[0], minlength=trace.num_experts) for layer in range(trace.layers)
    ]
    return Fitted({"uses": np.stack(counts)}, {}, [])
