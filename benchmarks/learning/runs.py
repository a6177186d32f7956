"""The runs of the benchmark: labels of a simulated annotator learnt by ours and by the rivals, and scored.

Apart from `__main__`, whose functions no other process can import.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ours
import tables
import torch
from annotator import Labels, first_strokes, wandering_strokes
from numpy.typing import NDArray
from photographs import Photograph, PhotographSet
from rivals import FeatureStore, dense_crf, forest
from tables import STRETCHED

from napari_crfasrnn import Segmenter, TrainConfig, load_model, metrics
from napari_crfasrnn.network import SegmentationModel


@dataclass(frozen=True)
class Run:
    """One cell of the tables: a set, a kind of labels, how many images, a seed."""

    name: str
    labels: str
    k: int
    seed: int

    def file(self, results: Path, whose: str) -> Path:
        return results / f"{self.name}-{self.labels}-{self.k}-{self.seed}-{whose}.json"


def work(task: tuple[Sequence[Run], argparse.Namespace]) -> None:
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


def judged(
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
