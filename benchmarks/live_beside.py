"""A class that is new beside those of the starter: what Live makes of strokes before any round of learning.

    python benchmarks/live_beside.py ../shared/data                        (seven minutes on two cores)
    python benchmarks/live_beside.py ../shared/data --write live_beside
    python benchmarks/live_beside.py ../shared/data --times                (the last line of the tables alone)

Images that the starter was not trained on: photographs of msrc21's validation list, and of the training lists
of sets that it never saw. One class of the truth that PASCAL VOC lacks (grass, road, nuclei) is added to the
starter's, drawn by seed. (How much examples of the rest count, `training/rest.py`, was chosen on images of
these sets, too, a few of them the same.) A simulated annotator (learning/annotator.py) draws a stroke into
its largest region, and then, one after the other, strokes into the largest error of what Live says. Means
over the images, of the new class's IoU and of the share of right pixels (what neither VOC nor this user has
is background); for three ways to answer the same strokes:

- "edges": the CRF alone, with the strokes held (`LiveRefinement`), as it was before there was Live for new
  classes beside known ones;
- "live": a small panel that learns the strokes beside the network (`LiveBeside`);
- "round": what a round of learning makes of the strokes, with these held.

Drops: how often, of all strokes but the first, the share of right pixels fell by more than five points. Then
the time from the end of a stroke to the answer on astronaut (512 x 512 pixels), the shortest and the longest
of some strokes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parent / "learning"))
import ours
from annotator import UNLABELLED, corrections, draw_stroke
from photographs import Photograph, PhotographSet

from napari_crfasrnn import Segmenter, TrainConfig, load_model
from napari_crfasrnn.imaging import open_image
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.training import LiveBeside

Labels = NDArray[np.uint8]

ALIKE = ("cow", "sheep", "aeroplane", "car", "bicycle", "bird", "chair", "cat", "dog", "boat")
IN_VOC = {  # class of a set → of VOC
    "msrc21": {"face": "person", "body": "person", **{name: name for name in ALIKE}},
    "camvid11": {"car": "car", "pedestrian": "person", "bicyclist": "person"},
    "peanut_plants": {"soil": "background"},
    "dsb2018_stained": {"background": "background", "border": "background"},
    "histo_gbm40": {"background": "background"},
}
SEEN = "msrc21"  # its training list, by the starter
SIDE, LEAST, MOST = 320, 0.03, 0.6  # pixels; share of the photograph that the new class has
N_STROKES, WITH_ROUND = 6, (1, 3, 6)  # after how many strokes a round learns them, too
DROP = 0.05
RESULTS = Path(__file__).parent / "results"


def scene(name: str, photographs: PhotographSet, photograph: Photograph, seed: int) -> Labels | None:
    """Return the truth in the starter's classes and a new one, or None where there is none of a good size."""
    voc = [spec.name for spec in load_model("starter").classes]
    mask, known = photograph.mask, IN_VOC[name]
    shares = {
        value: float((mask == value).mean())
        for value, spec in enumerate(photographs.classes)
        if spec not in known
    }
    fitting = [value for value, share in shares.items() if LEAST < share < MOST]
    if not fitting:
        return None
    truth = np.zeros_like(mask)
    truth[mask == UNLABELLED] = UNLABELLED
    for value, spec in enumerate(photographs.classes):
        if spec in known:
            truth[mask == value] = voc.index(known[spec])
    truth[mask == np.random.default_rng(seed).choice(fitting)] = len(voc)
    return truth


def judged(labels: Labels, truth: Labels, new: int) -> tuple[float, float]:
    """Return the IoU of the new class, and the share of right pixels."""
    is_known = truth != UNLABELLED
    found, wanted = (labels == new) & is_known, truth == new
    return float((found & wanted).sum() / (found | wanted).sum()), float((labels == truth)[is_known].mean())


def follow(task: tuple[Path, str, int, int, int]) -> list[dict[str, tuple[float, float]]] | None:
    """Return what each way says after each stroke on one photograph."""
    data, name, number, n_images, seed = task
    torch.set_num_threads(1)
    photographs = PhotographSet(data / name, SIDE)
    is_seen = name == SEEN
    images = photographs.validation(n_images) if is_seen else photographs.training(n_images, seed + 7)
    if number >= len(images):
        return None
    photograph = images[number]
    truth = scene(name, photographs, photograph, seed)
    if truth is None:
        return None
    random, starter = np.random.default_rng([seed, number]), load_model("starter")
    model = starter.with_classes([*starter.classes, "new"])
    new, whole = len(starter.classes), (0, 0, *truth.shape)
    segmenter = Segmenter(model, device="cpu")
    segmenter.set_image(photograph.image)
    edges = segmenter.live()
    live = LiveBeside(model, open_image(photograph.image).plane(()), segmenter.live(), [new])
    regions, _ = ndimage.label(truth == new)
    strokes = before = np.full_like(truth, UNLABELLED)
    strokes = strokes.copy()
    draw_stroke(strokes, regions == 1 + int(np.bincount(regions.ravel())[1:].argmax()), new, random)
    found = []
    for n_strokes in range(1, N_STROKES + 1):
        labels = live.exact(whole, strokes, before).labels
        row = {"live": judged(labels, truth, new)}
        if n_strokes in WITH_ROUND:
            row["edges"] = judged(edges.exact(whole, strokes, before).labels, truth, new)
            names = [spec.name for spec in model.classes]
            learnt = ours.learn(starter, names, [(photograph, strokes)], TrainConfig(seed=seed), base=starter)
            after = Segmenter(learnt.model, device="cpu")
            after.set_image(photograph.image)
            nothing = np.full_like(strokes, UNLABELLED)
            row["round"] = judged(after.live().exact(whole, strokes, nothing).labels, truth, new)
        found.append(row)
        before, more = strokes, corrections(truth, labels, 1, random)
        strokes = np.where(more == UNLABELLED, strokes, more)
    print(name, number, " ".join(f"{row['live'][0]:.2f}" for row in found), flush=True)
    return found


def table(found: list[list[dict[str, tuple[float, float]]]]) -> list[str]:
    """Return the table of all photographs."""
    lines = [
        "| strokes | edges: IoU | right | live: IoU | right | round: IoU | right |",
        "|---|---|---|---|---|---|---|",
    ]
    for number in range(N_STROKES):
        cells = []
        for way in ("edges", "live", "round"):
            scores = [rows[number][way] for rows in found if way in rows[number]]
            cells += [f"{value:.3f}" for value in np.mean(scores, axis=0)] if scores else ["–", "–"]
        lines.append(f"| {number + 1} | {' | '.join(cells)} |")
    right = np.array([[row["live"][1] for row in rows] for rows in found])
    drops = np.diff(right, axis=1)
    worst = f"the worst {drops.min():.3f}" if drops.min() < 0 else "none at all"
    return [
        *lines,
        "",
        f"{len(found)} images. Drops: {(drops < -DROP).sum()} of {drops.size} strokes, {worst}.",
    ]


def answer_times(rounds: int) -> str:
    """Return how long answers take."""
    torch.set_num_threads(2)
    starter = load_model("starter")
    model: SegmentationModel = starter.with_classes([*starter.classes, "new"])
    image = skimage.data.astronaut()
    segmenter, new = Segmenter(model, device="cpu"), len(starter.classes)
    segmenter.set_image(image)
    live = LiveBeside(model, open_image(image).plane(()), segmenter.live(), [new])
    before, taken = np.full(image.shape[:2], UNLABELLED, np.uint8), []
    for number in range(rounds):
        strokes = before.copy()
        strokes[40 + 50 * number : 48 + 50 * number, 20:90] = 0 if number % 2 else new
        begun = time.perf_counter()
        live.exact((0, 0, *strokes.shape), strokes, before)
        taken.append(time.perf_counter() - begun)
        before = strokes
    first, *others = taken
    return (
        f"512 x 512 pixels: the first stroke {first:.2f} s, others {min(others):.2f} to {max(others):.2f} s."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("--images", type=int, default=10, help="images of each set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--times", action="store_true", help="measure how long answers take, nothing else")
    parser.add_argument("--write", metavar="NAME", help="write benchmarks/results/NAME.md, too")
    options = parser.parse_args()
    times = answer_times(8)
    print(times, flush=True)
    if options.times:
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    parts = []
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for name in IN_VOC:
            n_images = options.images
            tasks = [(options.data, name, number, n_images, options.seed) for number in range(n_images)]
            found = [each for each in pool.map(follow, tasks, chunksize=1) if each is not None]
            parts += [f"## {name}", "", *table(found), ""]
    alone = "Times, with nothing else under way (`python benchmarks/live_beside.py ../shared/data --times`):"
    text = "\n".join([*parts, alone, times])
    print(text)
    if options.write:
        command = f"python benchmarks/live_beside.py ../shared/data --write {options.write}"
        machine = platform.processor() or platform.machine()
        day = f"{datetime.now(UTC):%Y-%m-%d}"
        head = f"# A new class beside those of the starter\n\n{machine}, {day}. `{command}`\n"
        (RESULTS / f"{options.write}.md").write_text(f"{head}\n{text}\n")


if __name__ == "__main__":
    main()
