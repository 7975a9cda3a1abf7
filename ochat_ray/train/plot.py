"""Plot of a training run: loss, learning rate and gradient norm over the steps."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID = "#1f2430", "#6b7280", "#e7e9ee"
_TRAINING, _HELD_OUT, _RATE, _NORM = "#2563eb", "#ea580c", "#0f766e", "#7c3aed"


def plot(lines: list[dict[str, Any]]) -> bytes:
    """Plot the lines of metrics.jsonl as a PNG of 2,000 x 1,300 pixels, to show at half size."""
    # Without pyplot, which keeps all figures of a process in memory.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = sorted((line for line in lines if "loss" in line), key=lambda line: line["step"])
    held_out = sorted((line for line in lines if "eval_loss" in line), key=lambda x: x["step"])
    figure = Figure(figsize=(10, 6.5), dpi=200, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12, hspace=0.03, wspace=0.06)  # type: ignore[union-attr, call-arg]
    grid = figure.add_gridspec(2, 2, height_ratios=(2.6, 1))
    loss, rate, norm = (figure.add_subplot(g) for g in (grid[0, :], grid[1, 0], grid[1, 1]))
    last = max((line["step"] for line in lines), default=0)
    for axes in (loss, rate, norm):
        style(axes, last)
    _loss(loss, steps, held_out)
    _series(rate, steps, "learning_rate", "learning rate", _RATE)
    rate.yaxis.set_major_formatter(
        lambda value, _: f"{value:.1e}".replace("e-0", "e-") if value else "0"
    )
    _series(norm, steps, "grad_norm", "gradient norm", _NORM, noisy=True)

    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return the moving average over a window of about 2% of the values; same shape.

    Values that are not finite are ignored.
    """
    count = len(values)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    reach = max(2, count // 100)
    left = np.maximum(np.arange(count) - reach, 0)
    right = np.minimum(np.arange(count) + reach + 1, count)
    known = counts[right] - counts[left]
    return np.where(known > 0, (sums[right] - sums[left]) / np.maximum(known, 1), np.nan)


def _loss(axes: Axes, steps: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> None:
    from matplotlib.patheffects import withStroke

    axes.set_title("Loss", loc="left", fontsize=15, fontweight="bold", color=INK, pad=30)
    x, y = column(steps, "loss")
    smooth = smoothed(y)
    _raw(axes, x, y, _TRAINING, label="training")
    axes.plot(x, smooth, color=_TRAINING, linewidth=2, label="training, smoothed")
    ex, ey = column(held_out, "eval_loss")
    axes.plot(
        ex,
        ey,
        color=_HELD_OUT,
        linewidth=1.2,
        linestyle=(0, (4, 3)),
        marker="o",
        markersize=6.5,
        markeredgecolor="white",
        markeredgewidth=1.2,
        label="held out",
        zorder=4,
        clip_on=False,
    )
    for index in {0, len(ex) - 1} if len(ex) else ():
        axes.annotate(
            f"{ey[index]:.3f}",
            (ex[index], ey[index]),
            xytext=(-8 if index else 8, 9),
            textcoords="offset points",
            ha="right" if index else "left",
            color=_HELD_OUT,
            fontsize=10,
            fontweight="bold",
            zorder=5,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
    axes.set_ylabel("nats per supervised token", color=MUTED, fontsize=10)
    if len(x) or len(ex):
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.012, 1.005), ncols=3, frameon=False, fontsize=10,
            labelcolor=INK, borderaxespad=0.3, handlelength=1.8,
        )  # fmt: skip
    # A spike of a single step must not determine the scale.
    shown = np.concatenate(
        [smooth, ey, np.quantile(y[np.isfinite(y)], [0.005, 0.995]) if np.isfinite(y).any() else []]
    )
    shown = shown[np.isfinite(shown)]
    if shown.size and shown.max() > shown.min():
        margin = 0.08 * (shown.max() - shown.min())
        axes.set_ylim(shown.min() - margin, shown.max() + 1.6 * margin)


def _series(
    axes: Axes,
    steps: list[dict[str, Any]],
    name: str,
    label: str,
    colour: str,
    *,
    noisy: bool = False,
) -> None:
    x, y = column(steps, name)
    axes.set_title(label, loc="left", fontsize=11, color=INK, pad=8)
    axes.margins(y=0.12)
    if noisy:
        _raw(axes, x, y, colour)
        y = smoothed(y)
    axes.plot(x, y, color=colour, linewidth=1.6, marker="o" if len(x) == 1 else None, markersize=4)
    positive = y[np.isfinite(y) & (y > 0)]
    if noisy and positive.size and positive.max() > 100 * np.median(positive):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _raw(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str | None = None) -> None:
    few = len(x) < 30
    axes.plot(
        x,
        y,
        color=colour,
        alpha=0.5 if few else 0.3,
        linewidth=0.9 if few else 0.6,
        marker="o" if few else None,
        markersize=3,
        label=label,
    )


def style(axes: Axes, last_step: int) -> None:
    """Style axes whose x axis has the steps up to `last_step`."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(-0.01 * max(last_step, 1), 1.01 * max(last_step, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("optimizer step", color=MUTED, fontsize=10)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=10, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)


def column(lines: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of the lines that have a number of this name."""
    having = [line for line in lines if isinstance(line.get(name), int | float)]
    return (
        np.array([line["step"] for line in having], dtype=float),
        np.array([line[name] for line in having], dtype=float),
    )
