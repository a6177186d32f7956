"""Learning from few labels, measured against what annotators have today.

    python benchmarks/learning ../shared/data            (make bench-learning; under an hour on two cores)
    python benchmarks/learning ../shared/data --quick    (five minutes)
    python benchmarks/learning --tables                  (print the tables of the results there are)
    python benchmarks/learning ../shared/data --effort   (the effort curve: effort.py says what it is)
    python benchmarks/learning --effort --tables --picture docs/images/effort.png
    python benchmarks/learning ../shared/data --sets em_vnc --labels strokes --k 1 --seeds 0 --picture a.png

Labels: strokes by a simulated annotator (annotator.py), or whole masks, on k images of a set's training
split. Scores: mean IoU over six images of its validation split, which no learner sees and no setting was
chosen on. Columns: random forests on classic and on encoder features, each alone and with a dense CRF
(rivals.py), each on the images as they are and stretched in brightness as ours are; and `fine_tune` from
the starter model on a project with these labels, without its CRF and as it comes. Each run leaves a JSON
file for the rivals and one for ours; what is there is not done again, so an interrupted benchmark goes on
where it was. After a change of the learner: --again ours.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import effort
import effort_tables
import numpy as np
import ours
import tables
import torch
from annotator import Labels, first_strokes, wandering_strokes
from numpy.typing import NDArray
from photographs import SETS, Photograph, PhotographSet
from pictures import save_failures
from rivals import FeatureStore, dense_crf, forest
from tables import STRETCHED

from napari_crfasrnn import Segmenter, TrainConfig, load_model, metrics
from napari_crfasrnn.network import SegmentationModel

RESULTS = Path(__file__).parents[1] / "results" / "learning"
SIDE = 256
DENSE_UP_TO = 3  # images with whole masks: nobody paints more of them to begin with
WHOSE = ("rivals", "ours")
QUICK_SETS = ("dsb2018_fluo", "em_vnc", "histo_gbm40", "camvid11")

Predict = Callable[[Photograph], NDArray[np.integer]]


@dataclass(frozen=True)
class Run:
    """One cell of the tables: a set, a kind of labels, how many images, a seed."""

    name: str
    labels: str
    k: int
    seed: int

    def file(self, results: Path, whose: str) -> Path:
        return results / f"{self.name}-{self.labels}-{self.k}-{self.seed}-{whose}.json"


def main() -> None:
    options = _parse()
    if options.effort:
        _effort(options)
        return
    if options.tables:
        tables.show(options.results, options.whose)
        return
    runs = list(_runs(options))
    if options.picture:
        save_failures(options.picture, _judged(runs, options))
        return
    options.results.mkdir(parents=True, exist_ok=True)
    for whose in options.again:
        for run in runs:
            run.file(options.results, whose).unlink(missing_ok=True)
    missing = [
        run for run in runs if not all(run.file(options.results, whose).exists() for whose in options.whose)
    ]
    groups = [list(group) for _, group in itertools.groupby(missing, key=lambda run: (run.seed, run.name))]
    print(f"{len(missing)} of {len(runs)} runs to do, in {options.results}", flush=True)
    if options.processes == 1:
        for group in groups:
            _work((group, options))
    elif groups:
        # Each process takes one core: learners and rivals alike.
        os.environ["OMP_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("spawn")
        with context.Pool(options.processes, maxtasksperchild=4) as pool:
            for _ in pool.imap_unordered(_work, [(group, options) for group in groups], chunksize=1):
                pass
    tables.show(options.results, options.whose)


def _effort(options: argparse.Namespace) -> None:
    if not options.tables:
        effort.run(options)
        return
    effort_tables.show(options.results)
    if options.picture:
        effort_tables.plot(options.results, options.picture)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="folder of the sets")
    parser.add_argument("--quick", action="store_true", help="four sets, k = 1 and 3, one seed")
    parser.add_argument("--tables", action="store_true", help="only print the results there are")
    parser.add_argument("--again", nargs="+", choices=WHOSE, default=[], help="forget these results first")
    parser.add_argument("--effort", action="store_true", help="measure strokes until images are labelled")
    parser.add_argument(
        "--picture",
        type=Path,
        help="only save the worst image of each run of ours as PNG; with --effort: save the curves, too",
    )
    parser.add_argument("--whose", nargs="+", choices=WHOSE, default=WHOSE, help="measure only these")
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--labels", nargs="+", choices=["strokes", "dense"], default=["strokes", "dense"])
    parser.add_argument("--k", nargs="+", type=int)
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--side", type=int, default=SIDE, help="pixels that images are cut to")
    parser.add_argument("--images", type=int, default=6, help="validation images of each set")
    parser.add_argument("--seconds", type=float, help="of learning by the clock, at most: 20")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--annotator", choices=["careful", "wandering"], default="careful")
    parser.add_argument(
        "--on",
        choices=["val", "train"],
        default="val",
        help="train: some left over there, to choose on",
    )
    options = parser.parse_args()
    if options.annotator != "careful" and options.results is None:
        parser.error(
            "other strokes must not mix with those of the tables: name another folder with --results"
        )
    if options.data is None and not options.tables:
        parser.error("data must name the folder of the sets")
    quick = options.quick
    if not options.effort:
        options.sets = options.sets or (QUICK_SETS if quick else SETS)
    options.k = options.k or ([1, 3] if quick else [1, 3, 5, 10])
    options.seeds = options.seeds or ([0] if quick or options.effort else [0, 1, 2])
    options.seconds = options.seconds or 20.0
    folder = ("effort" if options.effort else "") + ("-quick" if quick and options.effort else "")
    options.results = options.results or RESULTS / (folder or ("quick" if quick else "full"))
    return options


def _runs(options: argparse.Namespace) -> Iterator[Run]:
    for seed, name, labels, k in itertools.product(options.seeds, options.sets, options.labels, options.k):
        if labels == "strokes" or k <= DENSE_UP_TO:
            yield Run(name, labels, k, seed)


def _work(task: tuple[Sequence[Run], argparse.Namespace]) -> None:
    """Do runs of one set."""
    runs, options = task
    torch.set_num_threads(1)
    model = load_model(options.model)
    store = FeatureStore(model)
    for run in runs:
        photographs, training, scored = _read(run, options)
        for whose in options.whose:
            path = run.file(options.results, whose)
            if path.exists():
                continue
            found: dict[str, Any] = {
                "set": run.name, "labels": run.labels, "k": run.k, "seed": run.seed,
                "side": options.side, "on": options.on, "scored": [each.name for each in scored],
                "miou": {}, "iou": {}, "seconds": {},
            }  # fmt: skip
            if whose == "rivals":
                _measure_rivals(found, store, training, scored, len(photographs.classes), run.seed)
            else:
                config = TrainConfig(seconds=options.seconds, seed=run.seed)
                _measure_ours(found, model, photographs.classes, training, scored, config)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(found, indent=1))
            part.replace(path)
            print(tables.line(found), flush=True)


def _read(
    run: Run, options: argparse.Namespace
) -> tuple[PhotographSet, list[tuple[Photograph, Labels]], list[Photograph]]:
    """Return a set, what to learn of it, and what to score."""
    photographs = PhotographSet(options.data / run.name, options.side)
    training = [
        (photograph, _labels(photograph, run, number, options.annotator))
        for number, photograph in enumerate(photographs.training(run.k, run.seed))
    ]
    if options.on == "val":
        return photographs, training, photographs.validation(options.images)
    return photographs, training, photographs.development(options.images, run.seed)


def _judged(
    runs: Sequence[Run], options: argparse.Namespace
) -> Iterator[tuple[list[Photograph], list[NDArray[np.integer]], int]]:
    """Yield of each run the images to score, what ours says of them, and the number of classes."""
    torch.set_num_threads(1)
    model = load_model(options.model)
    for run in runs:
        photographs, training, scored = _read(run, options)
        config = TrainConfig(seconds=options.seconds, seed=run.seed)
        segmenter = Segmenter(ours.learn(model, photographs.classes, training, config).model, device="cpu")
        given = []
        for photograph in scored:
            segmenter.set_image(photograph.image)
            given.append(segmenter.predict().labels)
        yield scored, given, len(photographs.classes)


def _measure_rivals(
    found: dict[str, Any],
    store: FeatureStore,
    training: Sequence[tuple[Photograph, Labels]],
    scored: Sequence[Photograph],
    n_labels: int,
    seed: int,
) -> None:
    lessons = {
        "": training,
        STRETCHED: [(photograph.stretched(), labels) for photograph, labels in training],
    }
    for (how, lesson), kind in itertools.product(lessons.items(), ("classic", "encoder")):
        images = [photograph.stretched() if how else photograph for photograph in scored]
        begun = time.process_time()
        probabilities = forest(kind, store, lesson, n_labels, seed)
        found["seconds"][kind + how] = time.process_time() - begun
        given = [probabilities(photograph) for photograph in images]
        _score(found, kind + how, [each.argmax(0) for each in given], scored, n_labels)
        refined = [dense_crf(one.image, each) for one, each in zip(images, given, strict=True)]
        _score(found, f"{kind}+crf{how}", [each.argmax(0) for each in refined], scored, n_labels)


def _measure_ours(
    found: dict[str, Any],
    model: SegmentationModel,
    classes: list[str],
    training: Sequence[tuple[Photograph, Labels]],
    scored: Sequence[Photograph],
    config: TrainConfig,
) -> None:
    begun = time.process_time()
    report = ours.learn(model, classes, training, config)
    found["seconds"]["ours"] = time.process_time() - begun  # of the processor: others may use it, too
    found["crf_learnt"], found["stopped_by"] = report.crf_learnt, report.stopped_by
    segmenter = Segmenter(report.model, device="cpu")
    results, begun = [], time.process_time()
    for photograph in scored:
        segmenter.set_image(photograph.image)
        results.append(segmenter.predict())
    found["seconds"]["predict"] = (time.process_time() - begun) / len(scored)
    _score(found, "ours-crf", [result.before_crf for result in results], scored, len(classes))
    _score(found, "ours", [result.labels for result in results], scored, len(classes))


def _labels(photograph: Photograph, run: Run, number: int, annotator: str) -> Labels:
    if run.labels == "dense":
        return photograph.mask
    draw = wandering_strokes if annotator == "wandering" else first_strokes
    return draw(photograph.mask, np.random.default_rng([run.seed, number, 11]))


def _score(
    found: dict[str, Any],
    column: str,
    given: Sequence[NDArray[np.integer]],
    scored: Sequence[Photograph],
    n_labels: int,
) -> None:
    counts = np.zeros((n_labels, n_labels), np.int64)
    for labels, photograph in zip(given, scored, strict=True):
        counts += metrics.confusion(labels, photograph.mask, n_labels)
    found["miou"][column] = metrics.miou(counts)
    found["iou"][column] = [None if np.isnan(value) else float(value) for value in metrics.iou(counts)]


if __name__ == "__main__":
    main()
