"""Plot of the losses of several training runs over their steps."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence

from ochat_ray.train.metrics import Line
from ochat_ray.train.plot import INK, MUTED, column, smoothed, style

_COLOURS = ("#2563eb", "#ea580c", "#0f766e", "#7c3aed", "#be123c", "#a16207", "#0891b2", "#4d7c0f")


def colour(index: int) -> str:
    """Return the colour of a run; all are different."""
    if index < len(_COLOURS):
        return _COLOURS[index]
    parts = colorsys.hls_to_rgb(0.618034 * index % 1, 0.35 + 0.1 * (index % 3), 0.7)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


def plot_runs(runs: Sequence[Sequence[Line]]) -> bytes:
    """Plot the lines of several metrics.jsonl as a PNG of 2,000 x 1,040 pixels.

    The colours are those of `colour`; the plot has no names of runs.
    """
    # Without pyplot, which keeps all figures of a process in memory.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(10, 5.2), dpi=200, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    style(axes, max((line["step"] for lines in runs for line in lines), default=0))
    axes.set_title("Loss", loc="left", fontsize=15, fontweight="bold", color=INK, pad=30)
    axes.set_ylabel("nats per supervised token", color=MUTED, fontsize=10)
    for index, lines in enumerate(runs):
        ordered = sorted(lines, key=lambda line: line["step"])
        x, y = column(ordered, "loss")
        marker = "o" if len(x) == 1 else None
        axes.plot(x, smoothed(y), color=colour(index), linewidth=1.4, alpha=0.75, marker=marker)
        axes.plot(
            *column(ordered, "eval_loss"), color=colour(index), linewidth=1.4,
            linestyle=(0, (4, 3)), marker="o", markersize=6.5, markeredgecolor="white", zorder=4,
        )  # fmt: skip
    keys = [
        Line2D([], [], color=INK, linewidth=1.4, label="training, smoothed"),
        Line2D([], [], color=INK, linestyle=(0, (4, 3)), marker="o", label="held out"),
    ]
    axes.legend(
        handles=keys, loc="lower left", bbox_to_anchor=(-0.012, 1.005), ncols=2, frameon=False,
        fontsize=10, labelcolor=INK, borderaxespad=0.3, handlelength=2.4,
    )  # fmt: skip
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()
