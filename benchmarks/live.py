"""Measure live refinement: what a preview of a stroke costs, what the exact answer costs, how they agree.

    python benchmarks/live.py [--rounds N] [--write NAME]

The starter model (21 classes) on photographs that scikit-image carries, 512 x 512 and laid side by side to
4096 x 4096. A stroke is a scribble in a square of 64 x 64 pixels, within one region of the image and of a
class that the model does not see there. Times are CPU time of one thread, minima over rounds, in ms: the
first preview at a place (which builds its kernels), the next ones there, and the exact answer when the pen
is up, for which everything was prepared before, beside one bare run of the CRF on the same pixels.

Agreement is with the exact answer: of all pixels of the square, and of those that the stroke changes, beyond
those painted, by the exact answer or by the preview.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from skimage.draw import disk
from skimage.segmentation import felzenszwalb
from skimage.transform import resize

from napari_crfasrnn import Segmenter, load_model
from napari_crfasrnn.lattice import build_config, set_num_threads
from napari_crfasrnn.segmenter import LiveRefinement, Refined

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "motorcycle", "retina")
SIDE, SQUARE, NOTHING = 512, 64, 255
STROKES = 6  # on each photograph

COLUMNS = (
    "photograph", "size", "first preview", "next preview", "exact answer", "bare CRF",
    "agreement in the square", "right where something moves",
)  # fmt: skip

Box = tuple[int, int, int, int]


def photograph(name: str) -> NDArray[np.uint8]:
    loaded = skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
    side = min(loaded.shape[:2])
    top, left = (loaded.shape[0] - side) // 2, (loaded.shape[1] - side) // 2
    square = loaded[top : top + side, left : left + side, :3]
    sized = resize(square, (SIDE, SIDE), order=1, preserve_range=True, anti_aliasing=side > SIDE)
    return np.ascontiguousarray(np.rint(sized).astype(np.uint8))


def scribble(
    regions: NDArray[Any], labels: NDArray[Any], rng: np.random.Generator
) -> tuple[Box, NDArray[np.uint8]]:
    """Draw lines within one region in a square, of a class that is not there."""
    while True:
        y, x = rng.integers(SQUARE, SIDE - SQUARE, 2)
        box = (int(y) - 32, int(x) - 32, int(y) + 32, int(x) + 32)
        inside = part(regions, box) == regions[y, x]
        if 0.25 < inside.mean() < 0.8:
            break
    seen = np.bincount(part(labels, box)[inside], minlength=21).argmax()
    painted = (seen + 1 + rng.integers(0, 20)) % 21
    strokes = np.full((SIDE, SIDE), NOTHING, np.uint8)
    corners = np.argwhere(inside)[rng.integers(0, np.count_nonzero(inside), 4)]
    for start, end in pairwise(corners):
        for t in np.linspace(0, 1, 40):
            rows, columns = disk(start * (1 - t) + end * t, 5, shape=inside.shape)
            keep = inside[rows, columns]
            part(strokes, box)[rows[keep], columns[keep]] = painted
    return box, strokes


def part(array: NDArray[Any], box: Box) -> NDArray[Any]:
    return array[box[0] : box[2], box[1] : box[3]]


def milliseconds(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return 1e3 * (time.thread_time() - start)


class Measured:
    """One stroke on one plane."""

    def __init__(self, live: LiveRefinement, box: Box, strokes: NDArray[Any], rounds: int) -> None:
        before = np.full_like(strokes, NOTHING)
        if live.is_whole:
            live.prepare(before)
        seen, asked = live.preview_window(box), live.exact_window(box)

        def preview() -> Refined:
            return live.preview(box, part(strokes, seen), part(before, seen))

        def exact() -> Refined:
            return live.exact(box, part(strokes, asked), part(before, asked))

        self.first: list[float] = []
        self.next: list[float] = []
        self.exact: list[float] = []
        for _ in range(rounds):
            live._sketches.clear()
            self.first.append(milliseconds(preview))
            self.next.append(milliseconds(preview))
            guess = preview()
            if live.is_whole:
                live.prepare(before)
            self.exact.append(milliseconds(exact))
            if live.is_whole:
                live.prepare(before)
        truth = exact()
        y0, x0 = box[0] - seen[0], box[1] - seen[1]
        square: Box = (y0, x0, y0 + SQUARE, x0 + SQUARE)
        window: Box = tuple(edge - truth.box[i % 2] for i, edge in enumerate(seen))  # type: ignore[assignment]
        right = guess.labels == part(truth.labels, window)
        moved = (guess.changed | part(truth.changed, window)) & (part(strokes, seen) == NOTHING)
        self.agreement = float(part(right, square).mean())
        self.n_moved, self.n_right = int(moved.sum()), int((moved & right).sum())


def row(name: str, size: str, strokes: list[Measured], bare: str) -> str:
    def each(times: str) -> str:
        best = [min(getattr(stroke, times)) for stroke in strokes]
        return f"{statistics.median(best):.0f} (worst {max(best):.0f})"

    moved = sum(stroke.n_moved for stroke in strokes)
    hit = f"{100 * sum(stroke.n_right for stroke in strokes) / max(moved, 1):.0f} % of {moved}"
    agreement = f"{100 * statistics.mean(stroke.agreement for stroke in strokes):.2f} %"
    cells = (name, size, each("first"), each("next"), each("exact"), bare, agreement, hit)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--write", metavar="NAME", help="write benchmarks/results/NAME.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_num_threads(1)
    lines: list[str] = []

    def say(line: str = "") -> None:
        lines.append(line)
        print(line, flush=True)

    config = build_config()
    say("# Live refinement on the CPU")
    say()
    say(f"{platform.processor() or platform.machine()}; {config['compiler']}; {config['simd']}; "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; load average {load_average()} at the start.")  # fmt: skip
    say(f"`python benchmarks/live.py {' '.join(sys.argv[1:])}`; CPU ms, {STROKES} strokes each.")
    say()
    say(f"| {' | '.join(COLUMNS)} |")
    say(f"| {' | '.join('---' for _ in COLUMNS)} |")
    model = load_model("starter")
    for name in PHOTOGRAPHS:
        image = photograph(name)
        segmenter = Segmenter(model, "cpu")
        segmenter.set_image(image)
        labels = segmenter.predict().labels
        regions = felzenszwalb(image, scale=200, sigma=0.8, min_size=300)
        rng = np.random.default_rng(0)
        drawn = [scribble(regions, labels, rng) for _ in range(STROKES)]
        live = segmenter.live()
        bare = min(milliseconds(partial(bare_crf, model, live)) for _ in range(arguments.rounds))
        small = [Measured(segmenter.live(), box, strokes, arguments.rounds) for box, strokes in drawn]
        say(row(name, f"{SIDE}²", small, f"{bare:.0f}"))
    # One photograph as a mosaic: the strokes lie in its second tile of the second row.
    segmenter.set_image(np.tile(image, (8, 8, 1)))
    moved = []
    for box, strokes in drawn:
        wide = np.full((8 * SIDE, 8 * SIDE), NOTHING, np.uint8)
        wide[SIDE : 2 * SIDE, SIDE : 2 * SIDE] = strokes
        far: Box = (box[0] + SIDE, box[1] + SIDE, box[2] + SIDE, box[3] + SIDE)
        moved.append(Measured(segmenter.live(), far, wide, arguments.rounds))
    say(row(f"{PHOTOGRAPHS[-1]}, 64 tiles", f"{8 * SIDE}²", moved, "-"))
    say()
    say(f"Load average {load_average()} at the end.")
    if arguments.write:
        path = Path(__file__).parent / "results" / f"{arguments.write}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        print(f"written to {path}")


def bare_crf(model: Any, live: LiveRefinement) -> None:
    with torch.no_grad():
        model.crf(live._logits.within((0, 0, *live.plane_shape)), prepared=live._whole)


def load_average() -> str:
    path = Path("/proc/loadavg")
    return path.read_text().split()[0] if path.exists() else "unknown"


if __name__ == "__main__":
    main()
