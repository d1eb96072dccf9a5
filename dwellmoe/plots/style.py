"""The common look of all figures, and how they are saved."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dwellmoe.files import replacing

VARIANT_COLOURS = {"base": "#7a7f87", "control": "#2b6cb0", "tuned": "#d9560b"}
SPARE_COLOURS = (
    "#2f855a",
    "#805ad5",
    "#b7791f",
    "#c53030",
    "#0987a0",
    "#d53f8c",
    "#1a202c",
    "#84a62d",
    "#6b4c2a",
)
DOTS_PER_INCH = 130
_GRID = {"color": "#e3e6ea", "linewidth": 0.8}


def colour_of(variant: str, index: int = 0) -> str:
    """The colour of a variant; any other line gets one by its index."""
    return VARIANT_COLOURS.get(variant, SPARE_COLOURS[index % len(SPARE_COLOURS)])


def new_figure(
    rows: int = 1, columns: int = 1, *, width: float = 9.0, height: float = 4.2
) -> tuple[Figure, list[Axes]]:
    """An empty figure in the common look, and its axes in reading order. Sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for each in axes:
        each.grid(True, **_GRID)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=9)
    return figure, axes


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Title on the left, as it is (`$` begins no formula), and what the axes measure, units included."""
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", parse_math=False)
    axes.set_xlabel(x, fontsize=9.5)
    axes.set_ylabel(y, fontsize=9.5)


def note(figure: Figure, text: str) -> None:
    """The convention behind the numbers, below the figure."""
    figure.supxlabel(text, fontsize=8, color="#5a616b", parse_math=False)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG; the file appears complete or not at all. UserError where it cannot be written."""
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
