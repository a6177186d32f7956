"""The tables of the benchmark, from the files of its runs.

Rivals were measured on the images as they are and on the same stretched in brightness, as ours stretches
them: a cell of theirs shows both, and ours is compared with the better.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

RIVALS = ("classic", "classic+crf", "encoder", "encoder+crf")
OURS = ("ours-crf", "ours")
STRETCHED = ", stretched"  # after a rival's column: on images stretched in brightness
HEADS = {
    "classic": "classic", "classic+crf": "classic + CRF",
    "encoder": "encoder", "encoder+crf": "encoder + CRF",
    "ours-crf": "ours, no CRF", "ours": "ours",
}  # fmt: skip

Found = dict[str, Any]
Means = dict[str, float]  # column → mean IoU


def line(found: Found) -> str:
    """Return a run as a line."""
    scores = " ".join(f"{column} {score:.3f}" for column, score in found["miou"].items())
    seconds = " ".join(f"{what} {value:.1f}" for what, value in found["seconds"].items())
    return f"{found['set']} {found['labels']} k={found['k']} seed {found['seed']}: {scores}; s: {seconds}"


def show(results: Path, whose: Sequence[str] = ("rivals", "ours")) -> None:
    """Print a table for each kind of labels and each k, and one of the means.

    Only the rivals' columns, if ``whose`` are only they; else of runs that both have done.
    """
    summary = []
    with_ours = "ours" in whose
    groups = _read(results, with_ours)
    about_ours = ("learning, CPU s", "prediction, CPU s") if with_ours else ()
    for labels, k in sorted(groups, key=lambda group: (group[0] != "strokes", group[1])):
        print(f"\n### {labels}, k = {k}\n")
        _head("set", with_ours, "seeds", *about_ours)
        rows = []
        for name, runs in sorted(groups[labels, k].items()):
            means = _mean([run["miou"] for run in runs])
            rows.append(means)
            seconds = _mean([run["seconds"] for run in runs])
            seeds = ", ".join(str(run["seed"]) for run in sorted(runs, key=lambda run: run["seed"]))
            spent = [f"{seconds[what]:.1f}" for what in ("ours", "predict")] if with_ours else []
            _row(name, means, seeds, *spent)
        means = _mean(rows)
        _row("**mean**", means, "", *("" for _ in about_ours))
        worst = [f"{min(map(_lead, rows)):+.3f}"] if with_ours else []
        summary.append((f"{labels}, k = {k}", means, *worst, str(len(rows))))
    print("\n### Means over the sets\n")
    _head("labels", with_ours, *(("worst set",) if with_ours else ()), "sets")
    for first, means, *last in summary:
        _row(first, means, *last)


def _read(results: Path, with_ours: bool) -> dict[tuple[str, int], dict[str, list[Found]]]:
    """Return the runs that were done, by rivals or by both: (labels, k) → set → runs."""
    groups: dict[tuple[str, int], dict[str, list[Found]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(results.glob("*-rivals.json")):
        ours = path.with_name(path.name.replace("-rivals.json", "-ours.json"))
        found = json.loads(path.read_text())
        if with_ours:
            if not ours.exists():
                continue
            own = json.loads(ours.read_text())
            found = own | {what: found[what] | own[what] for what in ("miou", "iou", "seconds")}
        groups[found["labels"], found["k"]][found["set"]].append(found)
    return groups


def _mean(parts: Sequence[Means]) -> Means:
    return {column: float(np.mean([part[column] for part in parts])) for column in parts[0]}


def _lead(means: Means) -> float:
    """Return how far ours is ahead of the best rival, on whichever images that did better."""
    return means["ours"] - max(means[rival + how] for rival in RIVALS for how in ("", STRETCHED))


def _head(first: str, with_ours: bool, *last: str) -> None:
    columns = [*RIVALS, *OURS] if with_ours else RIVALS
    cells = [first, *(HEADS[column] for column in columns), *(("ours − best",) if with_ours else ()), *last]
    print("| " + " | ".join(cells) + " |")
    print("|" + "---|" * len(cells))


def _row(first: str, means: Means, *last: str) -> None:
    cells = [first, *(f"{means[rival]:.3f} / {means[rival + STRETCHED]:.3f}" for rival in RIVALS)]
    if "ours" in means:
        cells += [*(f"{means[column]:.3f}" for column in OURS), f"{_lead(means):+.3f}"]
    print("| " + " | ".join([*cells, *last]) + " |")
