"""Figure: decoding speed against memory on a device, a line a variant and policy."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from dwellmoe.plots.style import colour_of, label, new_figure, note


def draw(curves: Mapping[tuple[str, str], Sequence[tuple[float, float]]], device: str, about: str) -> Figure:
    """`curves`: (variant, policy) -> points (bytes, tokens a second); colour by variant, style by policy."""
    figure, (axes,) = new_figure(width=9, height=4.4)
    policies = list(dict.fromkeys(policy for _, policy in curves))
    styles = dict(zip(policies, ("-", "--", ":", "-.") * len(policies), strict=False))
    scale, unit = _unit(max(size for points in curves.values() for size, _ in points))
    for i, ((variant, policy), points) in enumerate(curves.items()):
        sizes, speeds = zip(*sorted(points), strict=True)
        style = {"color": colour_of(variant, i), "linestyle": styles[policy], "linewidth": 1.8}
        axes.plot([size / scale for size in sizes], speeds, label=f"{variant}, {policy}", **style)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=9, frameon=False)
    label(axes, device, f"memory for weights, {unit}", "decoded tokens a second")
    note(figure, about)
    return figure


def _unit(largest_bytes: float) -> tuple[float, str]:
    units = ((1e9, "GB"), (1e6, "MB"))
    return next(((size, name) for size, name in units if largest_bytes >= size), (1e3, "kB"))
