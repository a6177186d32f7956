"""The tables of the benchmark, from the files of its runs."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

RIVALS = ("classic", "classic+crf", "encoder", "encoder+crf")
OURS = ("ours-crf", "ours")
HEADS = {
    "classic": "classic", "classic+crf": "classic + CRF",
    "encoder": "encoder", "encoder+crf": "encoder + CRF",
    "ours-crf": "ours, no CRF", "ours": "ours",
}  # fmt: skip

Found = dict[str, Any]


def line(found: Found) -> str:
    """Return a run as a line."""
    scores = " ".join(f"{HEADS[column]} {score:.3f}" for column, score in found["miou"].items())
    seconds = " ".join(f"{what} {value:.1f}" for what, value in found["seconds"].items())
    return f"{found['set']} {found['labels']} k={found['k']} seed {found['seed']}: {scores}; s: {seconds}"


def show(results: Path) -> None:
    """Print a table for each kind of labels and each k, and one of the means."""
    summary = []
    groups = _read(results)
    for labels, k in sorted(groups, key=lambda group: (group[0] != "strokes", group[1])):
        print(f"\n### {labels}, k = {k}\n")
        _head("set", "ours − best", "seeds", "learning, CPU s", "prediction, CPU s")
        rows = []
        for name, runs in groups[labels, k].items():
            means = [float(np.mean([run["miou"][column] for run in runs])) for column in (*RIVALS, *OURS)]
            rows.append(means)
            learning, prediction = (
                f"{np.mean([run['seconds'][what] for run in runs]):.1f}" for what in ("ours", "predict")
            )
            _row(name, means, f"{means[-1] - max(means[:4]):+.3f}", str(len(runs)), learning, prediction)
        means = list(np.mean(rows, axis=0))
        _row("**mean**", means, f"{means[-1] - max(means[:4]):+.3f}", "", "", "")
        summary.append((labels, k, means, min(row[-1] - max(row[:4]) for row in rows), len(rows)))
    print("\n### Means over the sets\n")
    _head("labels", "ours − best column", "worst set", "sets")
    for labels, k, means, worst, n_sets in summary:
        _row(f"{labels}, k = {k}", means, f"{means[-1] - max(means[:4]):+.3f}", f"{worst:+.3f}", str(n_sets))


def _read(results: Path) -> dict[tuple[str, int], dict[str, list[Found]]]:
    """Return the runs that rivals and ours have both done: (labels, k) → set → runs."""
    groups: dict[tuple[str, int], dict[str, list[Found]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(results.glob("*-rivals.json")):
        ours = path.with_name(path.name.replace("-rivals.json", "-ours.json"))
        if ours.exists():
            theirs, found = json.loads(path.read_text()), json.loads(ours.read_text())
            both = found | {what: theirs[what] | found[what] for what in ("miou", "iou", "seconds")}
            groups[found["labels"], found["k"]][found["set"]].append(both)
    return groups


def _head(first: str, *last: str) -> None:
    cells = [first, *HEADS.values(), *last]
    print("| " + " | ".join(cells) + " |")
    print("|" + "---|" * len(cells))


def _row(first: str, means: list[float], *last: str) -> None:
    print("| " + " | ".join([first, *(f"{mean:.3f}" for mean in means), *last]) + " |")
