"""Measure what correcting images makes of a model: those images, and others that nobody corrected.

    python benchmarks/corrections.py ../shared/data [--models starter] [--draws 8] [--write corrections]

A simulated annotator (learning/annotator.py) looks at what a model says of an image that it never saw, draws
a stroke in each of the five largest errors, and presses Learn; then does it again with what the new model
says, and goes on to the next image, whose labels are learnt together with those before. Every round begins at
the model from before the first (`fine_tune(base=...)`), as in the widget. The table has means
over the draws, each of which begins with another image:

- "this image": mean IoU of the image that is being corrected. A person wants it to follow the strokes, and
  not to break elsewhere.
- "worst": the largest loss of any draw, against the image before its first stroke.
- "others": mean IoU of twelve images of the same kind that nobody corrected, counted together.
- "worst": the largest loss of any draw, against the model before the first stroke.

Images: what of ``../shared/data`` no model was trained on, every second one (``--on report``). The others
(``--on choice``) are to choose settings on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from napari_crfasrnn import Segmenter, TrainConfig, load_model, metrics
from napari_crfasrnn.network import SegmentationModel

sys.path.insert(0, str(Path(__file__).parent / "learning"))
import ours
from annotator import UNLABELLED, Labels, corrections
from photographs import Photograph, PhotographSet

RESULTS = Path(__file__).parent / "results"
SOURCES = {  # model: set, and the lists of it that the model was not trained on
    "starter": ("voc_coco128", ("train", "val")),
    "nuclei-fluorescence": ("dsb2018_fluo", ("val",)),
    "nuclei-stained": ("dsb2018_stained", ("val",)),
    "em-tissue": ("em_vnc", ("val",)),
    "road-scenes": ("camvid11", ("val",)),
}
N_OTHERS = 12
N_STROKES = 5  # in a round
GOOD = 0.9  # mean IoU of an image that nobody corrects
COLUMNS = ("model", "image", "rounds", "this image", "worst", "others", "worst", "draws")


@dataclass(frozen=True)
class Step:
    """Where a draw is.

    Attributes
    ----------
    image, n_rounds
        Which image is being corrected, and how many rounds have learnt from it.
    own, others
        Mean IoU of that image, and of the others.
    """

    image: int
    n_rounds: int
    own: float
    others: float


def main() -> None:
    options = _parse()
    lines = [_line(COLUMNS), "|" + "---|" * len(COLUMNS)]
    print("\n".join(lines), flush=True)
    # Not forked: torch's threads do not survive it.
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        for model in options.models:
            draws = list(pool.map(_work, [(model, draw, options) for draw in range(options.draws)]))
            for line in _rows(model, [draw for draw in draws if draw]):
                lines.append(_line(line))
                print(lines[-1], flush=True)
    if options.write:
        when = datetime.now(tz=UTC).strftime("%Y-%m-%d")
        models = "" if options.models == list(SOURCES) else f"--models {' '.join(options.models)} "
        how = f"{models}--draws {options.draws} --images {options.images} --rounds {options.rounds}"
        command = f"python benchmarks/corrections.py ../shared/data {how}"
        about = f"`{command}`, {platform.machine()}, torch {torch.__version__}, {when}"
        text = f"# Correcting an image\n\n{about}\n\n" + "\n".join(lines) + "\n"
        (RESULTS / f"{options.write}.md").write_text(text)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("--models", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--draws", type=int, default=8, help="annotators")
    parser.add_argument("--images", type=int, default=2, help="that each corrects")
    parser.add_argument("--rounds", type=int, default=2, help="on each image")
    parser.add_argument("--side", type=int, default=512, help="cut images to their middle square")
    parser.add_argument("--on", choices=("report", "choice"), default="report")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", metavar="NAME", help="also write results/NAME.md")
    return parser.parse_args()


def _work(task: tuple[str, int, argparse.Namespace]) -> list[Step]:
    """Correct the images of a draw; nothing where too few need it."""
    torch.set_num_threads(1)
    name, draw, options = task
    base = model = load_model(name)
    names = [spec.name for spec in model.classes]
    corrected, others = _draw(model, name, draw, options)
    random = np.random.default_rng([draw, 13])
    steps: list[Step] = []
    lesson: list[tuple[Photograph, Labels]] = []
    for number, own in enumerate(corrected):
        beside = steps[-1].others if steps else _score(model, others)
        steps.append(Step(number, 0, _score(model, [own]), beside))
        lesson.append((own, np.full(own.mask.shape, UNLABELLED, np.uint8)))
        for n_rounds in range(1, options.rounds + 1):
            strokes = corrections(own.mask, _segment(model, own), N_STROKES, random)
            lesson[-1] = (own, np.where(strokes == UNLABELLED, lesson[-1][1], strokes))
            config = TrainConfig(seconds=None, seed=draw + len(steps))
            model = ours.learn(model, names, lesson, config, base).model
            steps.append(Step(number, n_rounds, _score(model, [own]), _score(model, others)))
    return steps


def _draw(
    model: SegmentationModel, name: str, draw: int, options: argparse.Namespace
) -> tuple[list[Photograph], list[Photograph]]:
    """Return images that the model does not segment well yet, another first for each draw, and the others."""
    folder, splits = SOURCES[name]
    photographs = PhotographSet(options.data / folder, options.side)
    pool = sorted(name for split in splits for name in photographs.names(split))[options.on == "report" :: 2]
    known = {spec.name: value for value, spec in enumerate(model.classes)}
    values = {value: known[name] for value, name in enumerate(photographs.classes) if name in known}
    order = np.random.default_rng([17]).permutation(len(pool))
    n_others = min(N_OTHERS, len(pool) // 2)
    read = [photographs.read(pool[i]).renamed(values, rest=UNLABELLED) for i in order]
    needy: list[Photograph] = []
    for photograph in read[n_others:]:
        if len(needy) < draw + options.images and _score(model, [photograph]) < GOOD:
            needy.append(photograph)
    found = needy[draw : draw + options.images]
    return found if len(found) == options.images else [], read[:n_others]


def _segment(model: SegmentationModel, photograph: Photograph) -> Labels:
    segmenter = Segmenter(model, device="cpu")
    segmenter.set_image(photograph.image)
    return segmenter.predict().labels.astype(np.uint8)


def _score(model: SegmentationModel, photographs: Sequence[Photograph]) -> float:
    counts = np.zeros((model.n_labels, model.n_labels), np.int64)
    for photograph in photographs:
        counts += metrics.confusion(_segment(model, photograph), photograph.mask, model.n_labels)
    return metrics.miou(counts)


def _rows(model: str, draws: Sequence[Sequence[Step]]) -> list[tuple[str, ...]]:
    rows = []
    for steps in zip(*draws, strict=True):
        image, n_rounds = steps[0].image, steps[0].n_rounds
        rows.append(
            (
                model, str(image + 1), str(n_rounds),
                f"{np.mean([each.own for each in steps]):.3f}",
                _worst([each.own - _begun(draw, image).own for each, draw in zip(steps, draws, strict=True)]),
                f"{np.mean([each.others for each in steps]):.3f}",
                _worst([each.others - draw[0].others for each, draw in zip(steps, draws, strict=True)]),
                str(len(draws)),
            )
        )  # fmt: skip
    return rows or [(model, "too few need it", *["–"] * (len(COLUMNS) - 2))]


def _begun(steps: Sequence[Step], image: int) -> Step:
    """Return the step before the first stroke on an image."""
    return next(each for each in steps if each.image == image)


def _worst(gains: Sequence[float]) -> str:
    return f"{min(gains):+.3f}" if any(gains) else "–"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
