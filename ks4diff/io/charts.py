"""PNG charts of measured curves: points with error bars, panels in a grid; by matplotlib, if installed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ks4diff.io.atomic import atomic_path
from ks4diff.products.errors import ConfigError

_COLOURS = ("#005ab5", "#dc6e00", "#00825a")  # told apart by colour-blind eyes, and by their marks
_MARKS = ("o", "s", "D")
_PANEL_INCHES = (5.6, 3.8)
_DPI = 110
_LOG_TICKS = tuple(m * 10.0**e for e in range(-3, 7) for m in (1, 1.5, 2, 3, 5, 7))


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points (x, y) joined by a line, each with a bar from ``low`` to ``high`` where those are given."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes; ``levels`` are drawn dotted, ``y_range`` None takes what the points need."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    levels: Sequence[float] = ()


def need_charts() -> None:
    """Raise ConfigError, with what to install, where charts cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401 - loaded here so that only charts need it
    except ImportError:
        raise ConfigError("the figure needs matplotlib: pip install 'ks4diff[train]'") from None


def write_chart(
    path: str | os.PathLike[str], panels: Sequence[Panel], *, columns: int = 2, caption: str = ""
) -> None:
    """Write panels, row by row, as one PNG with a caption below; equal points give equal bytes.

    Raises
    ------
    ConfigError
        Where matplotlib is not installed.

    """
    need_charts()
    from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    figure = Figure(
        figsize=(_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows), dpi=_DPI, layout="constrained"
    )
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        _draw(axes, panel)
    if caption:
        figure.supxlabel(caption, fontsize=8)
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw(axes, panel: Panel) -> None:
    for k, one in enumerate(panel.series):
        x, y = np.asarray(one.x, dtype=np.float64), np.asarray(one.y, dtype=np.float64)
        bars = None
        if one.low is not None and one.high is not None:
            bars = np.abs(np.stack([y - np.asarray(one.low), np.asarray(one.high) - y]))
        good = np.isfinite(x) & np.isfinite(y)
        axes.errorbar(
            x[good],
            y[good],
            yerr=None if bars is None else bars[:, good],
            label=one.label,
            color=_COLOURS[k % len(_COLOURS)],
            marker=_MARKS[k % len(_MARKS)],
            markersize=4,
            linewidth=1.2,
            capsize=2,
        )
    for level in panel.levels:
        axes.axhline(level, color="0.3", linestyle=":", linewidth=1)
    if panel.log_x:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xticks([tick for tick in _LOG_TICKS if low <= tick <= high])
        axes.minorticks_off()
        axes.xaxis.set_major_formatter("{x:g}")
    if panel.log_y:
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter("{x:g}")
    if panel.y_range is not None:
        axes.set_ylim(*panel.y_range)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(color="0.9")
    if len(panel.series) > 1:
        axes.legend(fontsize=8)
