"""The effort curve as tables and as a plot, from the files of its runs."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

BY_HAND = "by hand"
TOOLS = (BY_HAND, "classic+crf", "encoder+crf", "ours")
HEADS = {"classic+crf": "classic + CRF", "encoder+crf": "encoder + CRF"}
ENOUGH = 0.95  # of the score that whole masks of all images give
COLOURS = {BY_HAND: "0.5", "classic+crf": "tab:orange", "encoder+crf": "tab:green", "ours": "tab:blue"}

Found = dict[str, Any]
Groups = dict[str, dict[str, list[Found]]]  # set → tool → runs


def line(found: Found) -> str:
    """Return a run as a line."""
    each = " ".join(str(image["strokes"]) for image in found["images"])
    iou = " ".join(f"{image['iou']:.2f}" for image in found["images"])
    scores = "".join(f" {score:.3f}" for score in found["miou"])
    return (
        f"{found['set']} {found['tool']} seed {found['seed']}: {_total(found)[0]} strokes ({each}), "
        f"{_total(found)[1]} clicks; IoU at first {iou}; validation{scores}; "
        f"{found['seconds']:.0f} s of learning"
    )


def show(results: Path) -> None:
    """Print what each image took, all together, and to reach the score of whole masks."""
    groups = _read(results)
    heads = [HEADS.get(tool, tool) for tool in TOOLS]
    print("\n### Until all images are good: strokes + clicks\n")
    _row("set", *heads, "ours / best rival", "ours / by hand", "images", "seeds")
    _rule(len(TOOLS) + 5)
    shares = []
    for name, tools in groups.items():
        means = {tool: np.mean([_total(one) for one in runs], axis=0) for tool, runs in tools.items()}
        rivals = min(means[tool][0] for tool in TOOLS if tool not in (BY_HAND, "ours"))
        shares.append((means["ours"][0] / rivals, means["ours"][0] / means[BY_HAND][0]))
        n_images = len(tools["ours"][0]["images"])
        seeds = ", ".join(str(one["seed"]) for one in tools["ours"])
        cells = [f"{means[tool][0]:.0f} + {means[tool][1]:.0f}" for tool in TOOLS]
        _row(name, *cells, *(f"{share:.2f}" for share in shares[-1]), str(n_images), seeds)
    if shares:
        means = [f"{np.exp(np.mean(np.log(part))):.2f}" for part in zip(*shares, strict=True)]
        _row("**geometric mean**", *("" for _ in TOOLS), *means, "", "")
    print("\n### Strokes on each image, one after the other\n")
    _row("set", *heads)
    _rule(len(TOOLS) + 1)
    for name, tools in groups.items():
        _row(name, *(" ".join(f"{n:.0f}" for n in _strokes(tools[tool])) for tool in TOOLS))
    print(f"\n### Strokes until {ENOUGH:.0%} of the validation score that whole masks give\n")
    learning = TOOLS[1:]
    _row("set", *(f"{HEADS.get(tool, tool)}" for tool in learning))
    _rule(len(learning) + 1)
    for name, tools in groups.items():
        _row(name, *(_until_enough(tools[tool]) for tool in learning))


def plot(results: Path, path: Path) -> None:
    """Save the curves: strokes by images that are done, and the validation score by strokes."""
    from matplotlib.figure import Figure

    groups = _read(results)
    figure = Figure(figsize=(3.2 * len(groups), 5.6), layout="constrained")
    axes = figure.subplots(2, len(groups), squeeze=False)
    for (name, tools), (above, below) in zip(groups.items(), axes.T, strict=True):
        for tool in TOOLS:
            strokes = np.cumsum(_strokes(tools[tool]))
            label, colour = HEADS.get(tool, tool), COLOURS[tool]
            above.plot(range(len(strokes) + 1), [0, *strokes], "o-", ms=3, color=colour, label=label)
            if tool != BY_HAND:
                scores = np.mean([one["miou"] for one in tools[tool]], axis=0)
                below.plot(strokes, scores, "o-", ms=3, color=colour)
                full = float(np.mean([one["full"] for one in tools[tool]]))
                below.axhline(ENOUGH * full, color=colour, lw=0.8, ls=":")
        above.set(title=name, xlabel="images done", ylim=(0, None), xlim=(0, None))
        below.set(xlabel="strokes", xlim=(0, None))
    axes[0, 0].set_ylabel("strokes")
    axes[0, 0].legend(frameon=False, fontsize="small")
    axes[1, 0].set_ylabel("mean IoU, validation")
    figure.savefig(path, dpi=100)


def _read(results: Path) -> Groups:
    """Return the runs of each set; seeds that not all tools have done are left out."""
    runs: dict[tuple[str, int], dict[str, Found]] = defaultdict(dict)
    for path in sorted(results.glob("*.json")):
        found = json.loads(path.read_text())
        runs[found["set"], found["seed"]][found["tool"]] = found
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for (name, _), tools in runs.items():
        if set(tools) == set(TOOLS):
            for tool, found in tools.items():
                groups[name][tool].append(found)
    return groups


def _total(found: Found) -> tuple[int, int]:
    """Return the strokes and the clicks of all images."""
    return tuple(sum(image[what] for image in found["images"]) for what in ("strokes", "clicks"))


def _strokes(runs: list[Found]) -> list[float]:
    """Return the strokes on each image, means over the seeds."""
    counts = [[image["strokes"] for image in one["images"]] for one in runs]
    return [float(n) for n in np.mean(counts, axis=0)]


def _until_enough(runs: list[Found]) -> str:
    """Return the strokes after which the score is as good as it gets, nearly; of each seed."""
    parts = []
    for one in runs:
        reached = np.flatnonzero(np.array(one["miou"]) >= ENOUGH * one["full"])
        n = sum(image["strokes"] for image in one["images"][: reached[0] + 1]) if len(reached) else None
        parts.append("–" if n is None else str(n))
    return f"{', '.join(parts)} (to {ENOUGH * float(np.mean([one['full'] for one in runs])):.3f})"


def _row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |")


def _rule(n: int) -> None:
    print("|" + "---|" * n)
