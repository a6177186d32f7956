"""Strokes that contradict the others: whether they are found.

    python benchmarks/contradictions.py ../shared/data                  (three minutes on two cores)
    python benchmarks/contradictions.py ../shared/data --write contradictions

Somebody draws first strokes on one image or three of a set's training split (learning/annotator.py). Then, by
mistake, they draw one more in the region of one of them, of another class. What is counted: of such strokes,
how many are found after a round, with their places; and of labels without a mistake, how many strokes are
said to contradict, and in how many projects one or more are. The settings were chosen with seeds 10 to 12;
told are seeds 0 to 2. A round has few iterations here: trees grow as in a long one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parent / "learning"))
import ours
from annotator import UNLABELLED, Labels, draw_stroke, first_strokes
from photographs import SETS, Photograph, PhotographSet

from napari_crfasrnn import TrainConfig, load_model
from napari_crfasrnn.edits import MIN_STROKE_PIXELS, label_regions
from napari_crfasrnn.training import PlaceOfContradiction

SIDE, IMAGES, MISTAKES = 256, (1, 3), 4
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Counts:
    """What was found in one set."""

    name: str
    mistakes: int
    found: int  # of these
    not_learnt: int  # of the latter: the new model itself sees another class
    strokes: int  # without a mistake
    alarms: int  # of these
    projects: int
    alarmed: int  # of these


def count(task: tuple[Path, str, tuple[int, ...]]) -> Counts:
    """Count what is found in one set."""
    data, name, seeds = task
    torch.set_num_threads(1)
    model, photographs = load_model("starter"), PhotographSet(data / name, SIDE)
    totals = np.zeros(7, np.int64)

    def told(training: list[tuple[Photograph, Labels]], seed: int) -> tuple[PlaceOfContradiction, ...]:
        config = TrainConfig(seed=seed, max_iterations=20, seconds=120)
        return ours.learn(model, photographs.classes, training, config).contradictions

    for seed in seeds:
        for k in IMAGES:
            training = [
                (photograph, first_strokes(photograph.mask, np.random.default_rng([seed, number, 11])))
                for number, photograph in enumerate(photographs.training(k, seed))
            ]
            n_strokes = sum(_n_strokes(labels) for _, labels in training)
            places = told(training, seed)
            totals[3:] += n_strokes, len(places), 1, bool(places)
            random = np.random.default_rng([seed, k, 13])
            for _ in range(MISTAKES):
                drawn = _mistake(training, random)
                if drawn is None:
                    continue
                number, stroke = drawn
                labels = training[number][1].copy()
                labels[stroke != UNLABELLED] = stroke[stroke != UNLABELLED]
                wrong = [*training]
                wrong[number] = training[number][0], labels
                found = [
                    place.region
                    for place in told(wrong, seed)
                    if place.item_id == number + 1 and _covers(place, stroke)
                ]
                totals[:3] += 1, bool(found), any(not region.is_learnt for region in found)
    print(name, *totals, flush=True)
    return Counts(name, *totals.tolist())


def _n_strokes(labels: Labels) -> int:
    sizes = np.bincount(label_regions(labels).ravel())[1:]
    return int((sizes >= MIN_STROKE_PIXELS).sum())


def _mistake(
    training: list[tuple[Photograph, Labels]], random: np.random.Generator
) -> tuple[int, Labels] | None:
    """Return an image and a stroke [H, W] in the region of one of its strokes, of another class."""
    number = int(random.integers(len(training)))
    photograph, labels = training[number]
    y, x = np.nonzero(labels != UNLABELLED)
    at = random.integers(len(y))
    value = labels[y[at], x[at]]
    regions, _ = ndimage.label(photograph.mask == value)
    region: NDArray[np.bool_] = regions == regions[y[at], x[at]]
    region &= ~ndimage.binary_dilation(labels != UNLABELLED, iterations=2)
    others = [other for other in np.unique(labels) if other not in (value, UNLABELLED)]
    stroke = np.full(labels.shape, UNLABELLED, np.uint8)
    if not others or region.sum() < 3 * MIN_STROKE_PIXELS:
        return None
    draw_stroke(stroke, region, random.choice(others), random)
    return (number, stroke) if (stroke != UNLABELLED).sum() >= MIN_STROKE_PIXELS else None


def _covers(place: PlaceOfContradiction, stroke: Labels) -> bool:
    """Return whether a place is that of a stroke."""
    y0, x0, y1, x1 = place.region.box
    inside = stroke[y0:y1, x0:x1] == place.region.label
    return bool(2 * inside.sum() > (stroke != UNLABELLED).sum())


def table(rows: list[Counts]) -> str:
    """Return the counts as a table."""
    lines = [
        "| set | mistakes | found | not learnt | strokes without | of these told | projects without | told |",
        "|---|---|---|---|---|---|---|---|",
    ]
    whole = Counts("**all**", *np.sum([list(vars(row).values())[1:] for row in rows], axis=0).tolist())
    for row in [*rows, whole]:
        found, alarms = row.found / max(1, row.mistakes), row.alarms / row.strokes
        lines.append(
            f"| {row.name} | {row.mistakes} | {row.found} ({found:.0%}) | {row.not_learnt} | {row.strokes} "
            f"| {row.alarms} ({alarms:.1%}) | {row.projects} | {row.alarmed} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", metavar="NAME", help="write benchmarks/results/NAME.md, too")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    tasks = [(options.data, name, tuple(options.seeds)) for name in options.sets]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        rows = pool.map(count, tasks, chunksize=1)
    text = table(rows)
    print(text)
    if options.write:
        command = f"python benchmarks/contradictions.py ../shared/data --write {options.write}"
        head = f"# Strokes that contradict the others\n\n{datetime.now(UTC):%Y-%m-%d}. `{command}`\n"
        (RESULTS / f"{options.write}.md").write_text(f"{head}\n{text}\n")


if __name__ == "__main__":
    main()
