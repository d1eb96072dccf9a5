"""Figure: decoding speed against memory on a device, from the rows of a plan."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from dwellmoe.plots import memory_throughput


def draw(rows: Sequence[dict], device: str, tokens_per_second: float | None = None) -> Figure:
    """A line a policy, and one at the wanted speed if there is one; `rows` of a plan."""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        curves.setdefault(("trace", row["policy"]), []).append(
            (row["memory_bytes"], row["tokens_per_second"])
        )
    figure = memory_throughput.draw(
        curves, device, "a lower bound: memory and storage bandwidth and latency, no overlap"
    )
    if tokens_per_second is not None:
        figure.axes[0].axhline(tokens_per_second, color="#c53030", linestyle=":", linewidth=1.2)
    return figure
