"""Figure: the experts that one layer chose token by token, a panel a variant.

Letters: T tokens, K chosen experts a token.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dwellmoe.plots.style import colour_of, label, new_figure, note


def draw(
    routing: Mapping[str, np.ndarray], experts: int, layer_id: int, prompt_tokens: int, about: str
) -> Figure:
    """`routing`: variant -> chosen experts [T, K] of one request; its first `prompt_tokens` are shaded."""
    figure, axes = new_figure(len(routing), 1, width=9, height=0.9 + 1.9 * len(routing))
    for panel, (variant, experts_TK) in zip(axes, routing.items(), strict=True):
        _panel(panel, experts_TK, colour_of(variant))
        if prompt_tokens:
            panel.axvspan(-0.5, prompt_tokens - 0.5, color="#f1f3f5", zorder=0)
        panel.set_xlim(-0.5, len(experts_TK) - 0.5)
        panel.set_ylim(-0.5, experts - 0.5)
        stayed = _stayed(experts_TK)[1:].mean() if len(experts_TK) > 1 else 0.0
        label(panel, f"{variant}: {stayed:.0%} of the choices were made a token before too", "", "expert")
    axes[-1].set_xlabel("token", fontsize=9.5)
    note(figure, f"{about}; layer {layer_id}; full colour: chosen a token before as well; shaded: the prompt")
    return figure


def _panel(axes: Axes, experts_TK: np.ndarray, colour: str) -> None:
    tokens = np.repeat(np.arange(len(experts_TK)), experts_TK.shape[1])
    stayed = _stayed(experts_TK).ravel()
    chosen = experts_TK.ravel()
    axes.scatter(tokens[~stayed], chosen[~stayed], s=9, color=colour, alpha=0.28, linewidths=0, marker="s")
    axes.scatter(tokens[stayed], chosen[stayed], s=12, color=colour, linewidths=0, marker="s")


def _stayed(experts_TK: np.ndarray) -> np.ndarray:
    """bool [T, K]: whether the token before chose the same expert."""
    before = np.roll(experts_TK.astype(np.int64), 1, axis=0)
    before[:1] = -1
    return (experts_TK[:, :, None] == before[:, None, :]).any(axis=2)
