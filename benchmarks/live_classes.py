"""The live classifier: what it sees while somebody paints, beside the round of learning that follows.

    python benchmarks/live_classes.py ../shared/data                        (three minutes on two cores)
    python benchmarks/live_classes.py ../shared/data --write live_classes

Somebody draws first strokes on one image of a set's training split (learning/annotator.py), in classes that
no model knows. The classifier labels the rest of that image, and six validation images from the same strokes;
then a round learns them, and its model segments the same images. Scores: mean IoU of seeds 0 to 2, of the
first image without the pixels that were painted; settings were chosen with seeds 10 to 12, on other images.
Then the time from the end of a stroke to the answer, on tissue that scikit-image carries, brought to several
sizes, with three strokes of three classes: by the clock, the shortest and the longest of some rounds; "ready"
is what is computed once for a plane, before the first stroke, and of a large one for what is around it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from skimage.transform import resize

sys.path.insert(0, str(Path(__file__).parent / "learning"))
import ours
from annotator import UNLABELLED, first_strokes
from photographs import SETS, PhotographSet

from napari_crfasrnn import Segmenter, TrainConfig, load_model, metrics
from napari_crfasrnn.classes import class_table
from napari_crfasrnn.edits import box_about
from napari_crfasrnn.imaging import open_image
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.training import LiveClassifier, StrokeLesson

SIDE, N_IMAGES = 256, 6
SIZES = (256, 512, 1024, 2048, 4096)
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Scores:
    """Mean IoU of one set: on the image that was painted on, and on others."""

    name: str
    live: tuple[float, float]
    round: tuple[float, float]


def told(
    model: SegmentationModel, image: NDArray[np.uint8], strokes: NDArray[np.uint8], *lessons: StrokeLesson
) -> tuple[NDArray[np.uint8], StrokeLesson]:
    """Return what the classifier says of an image, and the lesson of its strokes."""
    classifier = LiveClassifier(model, open_image(image).plane(()), lessons)
    whole = (0, 0, *strokes.shape)
    return classifier.exact(whole, strokes, np.full_like(strokes, UNLABELLED)).labels, classifier.lesson


def score(task: tuple[Path, str, tuple[int, ...]]) -> Scores:
    """Score one set."""
    data, name, seeds = task
    torch.set_num_threads(1)
    starter, photographs = load_model("starter"), PhotographSet(data / name, SIDE)
    n_labels = len(photographs.classes)
    model = starter.with_classes(class_table(photographs.classes))
    others = photographs.validation(N_IMAGES)
    found = []
    for seed in seeds:
        (photograph,) = photographs.training(1, seed)
        strokes = first_strokes(photograph.mask, np.random.default_rng([seed, 0, 11]))
        truth = np.where(strokes == UNLABELLED, photograph.mask, UNLABELLED)
        own, lesson = told(model, photograph.image, strokes)
        nothing = np.full((SIDE, SIDE), UNLABELLED, np.uint8)
        live = [
            told(model, each.image, nothing[: each.mask.shape[0], : each.mask.shape[1]], lesson)[0]
            for each in others
        ]
        config = TrainConfig(seed=seed, seconds=40.0)
        segmenter = Segmenter(
            ours.learn(starter, photographs.classes, [(photograph, strokes)], config).model, device="cpu"
        )
        learnt = []
        for each in (photograph, *others):
            segmenter.set_image(each.image)
            learnt.append(segmenter.predict().labels)
        masks = [each.mask for each in others]
        found.append(
            [
                _miou([own], [truth], n_labels),
                _miou(live, masks, n_labels),
                _miou(learnt[:1], [truth], n_labels),
                _miou(learnt[1:], masks, n_labels),
            ]
        )
    a, b, c, d = np.mean(found, axis=0).tolist()
    print(name, f"{a:.3f} {b:.3f} {c:.3f} {d:.3f}", flush=True)
    return Scores(name, (a, b), (c, d))


def _miou(given: list[NDArray[np.uint8]], truth: list[NDArray[np.uint8]], n_labels: int) -> float:
    counts = np.zeros((n_labels, n_labels), np.int64)
    for labels, mask in zip(given, truth, strict=True):
        counts += metrics.confusion(labels, mask, n_labels)
    return float(metrics.miou(counts))


def time_answers(threads: int, rounds: int) -> list[str]:
    """Return rows of a table: how long it takes to make ready and to answer, by size."""
    torch.set_num_threads(threads)
    model = load_model("starter").with_classes(class_table(["background", "brown", "blue"]))
    lines = ["| size | labelled at once | ready, s | answer, s |", "|---|---|---|---|"]
    for side in SIZES:
        tissue = resize(skimage.data.immunohistochemistry(), (side, side), order=1, preserve_range=True)
        plane = open_image(np.rint(tissue).astype(np.uint8)).plane(())
        strokes = np.full((side, side), UNLABELLED, np.uint8)
        for value, (y, x) in enumerate(((0.92, 0.1), (0.42, 0.68), (0.1, 0.52))):
            row, column, half = int(y * side), int(x * side), max(2, side // 128)
            strokes[row - half : row + half, column : column + side // 10] = value
        ready, answered = [], []
        y0, x0, y1, x1 = box = box_about((0, 0, side // 4, side // 4), (side, side), model.n_labels)
        if box != (0, 0, side, side):  # all strokes in there
            strokes = np.full((side, side), UNLABELLED, np.uint8)
            for value in range(3):
                strokes[100 * value + 50 : 100 * value + 66, 100:200] = value
        there = strokes[y0:y1, x0:x1]
        for _ in range(rounds):
            begun = time.perf_counter()
            classifier = LiveClassifier(model, plane, box=box)
            ready.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            classifier.exact(box, there, np.full_like(there, UNLABELLED))
            answered.append(time.perf_counter() - begun)
        lines.append(f"| {side}² | {y1 - y0}² | {_span(ready)} | {_span(answered)} |")
        print(lines[-1], flush=True)
    return lines


def _span(seconds: list[float]) -> str:
    return f"{min(seconds):.2f} to {max(seconds):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="for the times")
    parser.add_argument("--rounds", type=int, default=5, help="how often each time is measured")
    parser.add_argument("--write", metavar="NAME", help="write benchmarks/results/NAME.md, too")
    options = parser.parse_args()
    times = time_answers(options.threads, options.rounds)
    os.environ["OMP_NUM_THREADS"] = "1"
    tasks = [(options.data, name, tuple(options.seeds)) for name in options.sets]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        rows = pool.map(score, tasks, chunksize=1)
    lines = [
        "| set | live, own image | after a round | live, other images | after a round |",
        "|---|---|---|---|---|",
    ]
    mean = Scores(
        "**mean**",
        (float(np.mean([row.live[0] for row in rows])), float(np.mean([row.live[1] for row in rows]))),
        (float(np.mean([row.round[0] for row in rows])), float(np.mean([row.round[1] for row in rows]))),
    )
    for row in [*rows, mean]:
        cells = (row.live[0], row.round[0], row.live[1], row.round[1])
        lines.append(f"| {row.name} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    text = "\n".join([*lines, "", *times])
    print(text)
    if options.write:
        command = f"python benchmarks/live_classes.py ../shared/data --write {options.write}"
        machine = platform.processor() or platform.machine()
        day = f"{datetime.now(UTC):%Y-%m-%d}"
        head = f"# The live classifier\n\n{machine}, {options.threads} threads, {day}. `{command}`\n"
        (RESULTS / f"{options.write}.md").write_text(f"{head}\n{text}\n")


if __name__ == "__main__":
    main()
