"""Figures on files through matplotlib, which the extra ``train`` brings; no window, no global state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from napari_crfasrnn.training.evaluation import Evaluation


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of a size in inches.

    Raises
    ------
    RuntimeError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError(
            'figures take matplotlib, which is not installed: pip install "napari-crfasrnn[train]"'
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_figure(path: Path) -> None:
    """Raise what drawing a figure into a file would raise, before there is anything to draw."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"a figure is a .png file, got {path.name!r}")
    new_figure(1, 1)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, beside its place first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part")
    figure.savefig(temporary, format="png", dpi=120)
    os.replace(temporary, path)


def draw_confusion(result: Evaluation, path: Path) -> None:
    """Draw the confusion matrices before and after the CRF, each row in shares of its true class.

    Raises
    ------
    RuntimeError
        If matplotlib is not installed.
    """
    names = [spec.name for spec in result.classes]
    side = max(4.0, 0.32 * len(names))
    figure = new_figure(2 * side + 2, side + 1)
    for place, (title, score) in enumerate((("network alone", result.before), ("with CRF", result.after))):
        axes = figure.add_subplot(1, 2, place + 1)
        counts = score.confusion
        shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
        axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
        ticks = range(len(names))
        axes.set_xticks(ticks, names, rotation=90, fontsize=8)
        axes.set_yticks(ticks, names if place == 0 else [""] * len(names), fontsize=8)
        axes.set_xlabel("given")
        axes.set_title(f"{title}: mean IoU {score.summary()['mean IoU']:.3f}")
        if len(names) <= 12:
            for row in ticks:
                for column in ticks:
                    share = shares[row, column]
                    if share >= 0.005:
                        axes.text(
                            column, row, f"{share:.2f}".lstrip("0"), ha="center", va="center", fontsize=7,
                            color="black" if share > 0.5 else "white",
                        )  # fmt: skip
        if place == 0:
            axes.set_ylabel("true")
    save_figure(figure, path)
