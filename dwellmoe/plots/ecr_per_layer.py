"""Figure: the expert consistency rate of each layer, a panel a phase and a line a variant."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dwellmoe.plots.style import colour_of, label, new_figure, note


def draw(rows: Sequence[dict]) -> Figure:
    """`rows`: locality rows of one text."""
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    figure, axes = new_figure(1, len(phases), width=4.6 * max(2, len(phases)), height=3.8)
    for panel, phase in zip(axes, phases, strict=True):
        for i, row in enumerate(row for row in rows if row["phase"] == phase):
            _line(panel, row, colour_of(row["variant"], i))
        panel.axhline(
            rows[0]["chance_ecr"], color="#b4bac2", linestyle=":", linewidth=1.2, label="chance, K / E"
        )
        panel.set_ylim(0, 1)
        label(panel, phase, "decoder layer", "ECR")
    axes[0].legend(fontsize=9, frameon=False, loc="upper left")
    about = "pairs of consecutive tokens of one request and phase; 95 % bootstrap bands"
    note(figure, f"text {rows[0]['text']}; {about}")
    return figure


def _line(axes: Axes, row: dict, colour: str) -> None:
    layers = [layer["layer_id"] for layer in row["per_layer"]]
    values = [layer["ecr"] for layer in row["per_layer"]]
    bands = [layer["ecr_ci95"] or [layer["ecr"]] * 2 for layer in row["per_layer"]]
    axes.plot(layers, values, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=row["variant"])
    low, high = zip(*bands, strict=True)
    axes.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
