"""Figure: the ECR of each layer over training, as a heat map."""

from collections.abc import Sequence

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib.figure import Figure


def draw(steps: Sequence[int], ecr_of_layer: Sequence[np.ndarray], layer_ids: Sequence[int]) -> Figure:
    """`ecr_of_layer`: [steps, L] in [0, 1]; steps run to the right, layers upwards."""
    figure = Figure(figsize=(7, 0.3 * len(layer_ids) + 1.6), layout="constrained")
    axes = figure.subplots()
    columns = list(zip(*ecr_of_layer, strict=True))
    image = axes.imshow(
        columns, aspect="auto", origin="lower", vmin=0, vmax=1, cmap="viridis", interpolation="nearest"
    )
    axes.set_xticks(range(len(steps)), [str(step) for step in steps])
    axes.set_yticks(range(len(layer_ids)), [str(layer) for layer in layer_ids])
    axes.set(xlabel="step", ylabel="layer", title="expert consistency rate")
    figure.colorbar(image, ax=axes)
    return figure
