"""Figure: hit rate against capacity, a panel a policy and a line a variant."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dwellmoe.plots.style import colour_of, label, new_figure, note


def draw(rows: Sequence[dict]) -> Figure:
    """`rows`: hit-rate rows of one text, scope and phase; rows without "variant" are one line."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    columns = min(2, len(policies))
    lines = -(-len(policies) // columns)
    figure, axes = new_figure(lines, columns, width=9, height=1.1 + 2.7 * lines)
    for panel, policy in zip(axes, policies, strict=False):
        _panel(panel, [row for row in rows if row["policy"] == policy])
        label(panel, policy, "capacity, % of the routed experts", "hit rate")
    for panel in axes[len(policies) :]:
        panel.set_visible(False)
    axes[0].legend(fontsize=9, frameon=False, loc="lower right")
    note(figure, _convention(rows[0]))
    return figure


def _panel(axes: Axes, rows: Sequence[dict]) -> None:
    variants = list(dict.fromkeys(row.get("variant", "trace") for row in rows))
    for i, variant in enumerate(variants):
        line = [row for row in rows if row.get("variant", "trace") == variant]
        percent = [row["capacity_percent"] for row in line]
        rates = [row["hit_rate"] for row in line]
        axes.plot(percent, rates, color=colour_of(variant, i), linewidth=1.8, label=variant)
    axes.plot([0, 100], [0, 1], color="#b4bac2", linestyle=":", linewidth=1.2, label="random routing")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 1.02)


def _convention(row: dict) -> str:
    text = f"text {row['text']}, " if "text" in row else ""
    return text + ", ".join(f"{name} {row[name]}" for name in ("phase", "scope", "access", "start", "reset"))
