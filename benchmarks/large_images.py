"""Large images: what it is worth that experts read them as they are, not shrunk to what a network reads.

    python benchmarks/large_images.py ../shared/data                         (eight minutes on two cores)
    python benchmarks/large_images.py ../shared/data --write large_images

Images of a set are put together to large ones, since the sets hold small ones. Somebody draws first strokes
on one, of images of the training split (learning/annotator.py); a round learns them, and segments two others,
of images of the validation split: once with experts that read up to 512 pixels on the long side, as the
starter's network does, and once with 2048, so as they come. Scores: mean IoU, by seed; seconds by the clock.
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
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent / "learning"))
import ours
from annotator import first_strokes
from photographs import Photograph, PhotographSet

from napari_crfasrnn import Segmenter, TrainConfig, load_model, metrics, network

# Set → side of its images, and how many of them are put side by side.
SETS = {
    "camvid11": (360, 3),
    "dsb2018_fluo": (256, 4),
    "dsb2018_stained": (256, 4),
    "em_vnc": (512, 2),
    "histo_gbm40": (512, 2),
    "peanut_plants": (480, 2),
}
SIDES = (512, 2048)
N_SCORED = 2
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Run:
    """One set with one seed: scores, and seconds of learning and of segmenting an image, by the side read."""

    name: str
    seed: int
    miou: tuple[float, ...]
    learning: tuple[float, ...]
    segmenting: tuple[float, ...]


def put_together(photographs: PhotographSet, names: list[str], n: int) -> Photograph:
    """Return n by n images as one; from the first one on again where there are too few."""
    parts = [photographs.read(names[i % len(names)]) for i in range(n * n)]

    def joined(arrays: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        coloured = any(array.ndim == 3 for array in arrays)
        same = [np.stack([a] * 3, -1) if coloured and a.ndim == 2 else a for a in arrays]
        return np.concatenate([np.concatenate(same[n * row : n * row + n], 1) for row in range(n)], 0)

    image, mask = joined([each.image for each in parts]), joined([each.mask for each in parts])
    return Photograph(f"{photographs.folder.name}, {n} x {n}", image, mask)


def measure(task: tuple[Path, str, int]) -> Run:
    """Learn and score one set with one seed."""
    data, name, seed = task
    torch.set_num_threads(1)
    side, n = SETS[name]
    photographs, starter = PhotographSet(data / name, side), load_model("starter")
    random = np.random.default_rng([seed, 21])
    training, validation = (_shuffled(photographs, split, random) for split in ("train", "val"))
    painted = put_together(photographs, training, n)
    strokes = first_strokes(painted.mask, np.random.default_rng([seed, 0, 11]))
    found: list[tuple[float, float, float]] = []
    for long_side in SIDES:
        network.EXPERT_SIDE = long_side
        begun = time.perf_counter()
        config = TrainConfig(seed=seed, seconds=60.0)
        model = ours.learn(starter, photographs.classes, [(painted, strokes)], config).model
        learning, begun = time.perf_counter() - begun, time.perf_counter()
        segmenter, n_labels = Segmenter(model, device="cpu"), model.n_labels
        counts = np.zeros((n_labels, n_labels), np.int64)
        for number in range(N_SCORED):
            scored = put_together(photographs, validation[number * n * n :] or validation, n)
            segmenter.set_image(scored.image)
            counts += metrics.confusion(segmenter.predict().labels, scored.mask, n_labels)
        found.append((metrics.miou(counts), learning, (time.perf_counter() - begun) / N_SCORED))
    miou, learning_s, segmenting_s = zip(*found, strict=True)
    print(name, seed, *(f"{value:.3f}" for value in miou), flush=True)
    return Run(name, seed, miou, learning_s, segmenting_s)


def _shuffled(photographs: PhotographSet, split: str, random: np.random.Generator) -> list[str]:
    """Return the names of images that are large enough to be cut to the side, in any order."""
    side = photographs.side
    names = [name for name in photographs.names(split) if photographs.read(name).mask.shape == (side, side)]
    return [names[i] for i in random.permutation(len(names))]


def table(runs: list[Run]) -> list[str]:
    """Return the rows of a table."""
    lines = [
        "| set | size | read up to 512 | as it is | difference | seeds | learning, s | segmenting, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    means = []
    for name in dict.fromkeys(run.name for run in runs):
        own = [run for run in runs if run.name == name]
        small, whole = np.mean([run.miou for run in own], axis=0).tolist()
        means.append((small, whole))
        seconds = [
            np.mean([getattr(run, what) for run in own], axis=0) for what in ("learning", "segmenting")
        ]
        side, n = SETS[name]
        seeds = ", ".join(f"{run.miou[0]:.2f} → {run.miou[1]:.2f}" for run in own)
        cells = [name, f"{side * n}²", f"{small:.3f}", f"{whole:.3f}", f"{whole - small:+.3f}", seeds]
        lines.append(f"| {' | '.join(cells)} | {' | '.join(f'{a:.1f} → {b:.1f}' for a, b in seconds)} |")
    small, whole = np.mean(means, axis=0).tolist()
    lines.append(f"| **mean** |  | {small:.3f} | {whole:.3f} | {whole - small:+.3f} |  |  |  |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", metavar="NAME", help="write benchmarks/results/NAME.md, too")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    tasks = [(options.data, name, seed) for name in options.sets for seed in options.seeds]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        runs = pool.map(measure, tasks, chunksize=1)
    text = "\n".join(table(runs))
    print(text)
    if options.write:
        command = f"python benchmarks/large_images.py ../shared/data --write {options.write}"
        machine = platform.processor() or platform.machine()
        about = f"{machine}, {options.processes} processes of one thread, {datetime.now(UTC):%Y-%m-%d}"
        head = f"# Large images\n\n{about}. `{command}`\n"
        (RESULTS / f"{options.write}.md").write_text(f"{head}\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
