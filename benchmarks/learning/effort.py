"""The effort curve: how many strokes it takes until all images of a stream are labelled well.

A person has a handful of images and wants each labelled to a mean IoU of `GOOD`. They take them one after
another, with a tool that learns, and with none:

1. The tool segments the image. (The first time it knows nothing: a stroke in a region of each class teaches
   it. Without a tool, a click makes all of the image the class that is most of it.)
2. Where that is not good enough, they paint over the `CORRECTED` largest errors, and press Learn; the tool
   segments the image anew, keeping to what was painted. This once on each image, on the first one twice. What
   is worse than before is not taken; nor is, for a click, what is worse than an image filled with one class.
3. They paint over the largest errors until the image is good, or, where that takes fewer strokes and clicks,
   paint the rest anew as without a tool, and accept it: a click. The tool learns what was accepted, errors
   and all.

Ours follows the brush while they paint (Live, in the widget); the rivals have nothing like it.

Each stroke counts, and each click: those that fill an outline, Learn, and Accept. painting.py says what
painting takes; it is the same hand for all. All tools are shown the same images. Rivals get them stretched in
brightness, as ours stretches them, and a dense CRF with the painted pixels put into it. The images are of the
training split; after each, the tool is scored on validation images, which nothing is chosen on. In the end
every tool learns the true masks of all images: the score that whole labels give.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import effort_tables
import numpy as np
import ours
import torch
from annotator import UNLABELLED, Labels, first_strokes
from numpy.typing import NDArray
from painting import Effort, Guide, paint, score
from photographs import Photograph, PhotographSet
from rivals import FeatureStore, dense_crf, forest

from napari_crfasrnn import Segmenter, TrainConfig, load_model, metrics
from napari_crfasrnn.network import SegmentationModel

SETS = ("dsb2018_fluo", "em_vnc", "histo_gbm40", "peanut_plants")
QUICK_SETS, QUICK_IMAGES = ("histo_gbm40",), 3
GOOD = 0.9  # mean IoU of an image at which a person accepts it
CORRECTED = 5  # regions that are painted before the tool learns again
LESSONS = (2, 1)  # of these on the first image, and on each of the others
IMAGES = 6  # of the stream

Lesson = Sequence[tuple[Photograph, Labels]]


class Tool(ABC):
    """Something that learns labels and segments images."""

    @abstractmethod
    def learn(self, lesson: Lesson) -> None:
        """Learn from labelled images; what was learnt before is among them."""

    @abstractmethod
    def segment(self, photograph: Photograph, painted: Labels) -> Labels:
        """Return the labels [H, W] of an image, some pixels of which were painted."""

    def guide(self, painted: Labels, random: np.random.Generator) -> Guide | None:
        """Return what follows the brush on the image that was segmented last, if anything does."""
        return None


class Rival(Tool):
    """A random forest followed by a dense CRF, on images stretched in brightness."""

    def __init__(self, kind: str, store: FeatureStore, n_labels: int, seed: int) -> None:
        self._kind, self._store, self._n_labels, self._seed = kind, store, n_labels, seed

    def learn(self, lesson: Lesson) -> None:
        stretched = [(photograph.stretched(), labels) for photograph, labels in lesson]
        self._judge = forest(self._kind, self._store, stretched, self._n_labels, self._seed)

    def segment(self, photograph: Photograph, painted: Labels) -> Labels:
        stretched = photograph.stretched()
        probabilities = self._judge(stretched)
        is_painted = painted != UNLABELLED
        probabilities[:, is_painted] = np.eye(self._n_labels, dtype=np.float32)[painted[is_painted]].T
        labels = dense_crf(stretched.image, probabilities).argmax(0).astype(np.uint8)
        return np.where(is_painted, painted, labels)


class Ours(Tool):
    """`fine_tune` from a model, round after round; what was painted is held while the CRF works.

    While somebody paints, labels follow the brush as in the widget with Live on: they change where the CRF
    gives others with the stroke than without it.
    """

    def __init__(self, model: SegmentationModel, classes: list[str], config: TrainConfig) -> None:
        self._model, self._classes, self._config = model, classes, config

    def learn(self, lesson: Lesson) -> None:
        report = ours.learn(self._model, self._classes, lesson, self._config)
        self._segmenter = Segmenter(report.model, device="cpu")

    def segment(self, photograph: Photograph, painted: Labels) -> Labels:
        self._segmenter.set_image(photograph.image)
        labels = np.asarray(self._segmenter.predict().labels)
        is_painted = painted != UNLABELLED
        if not is_painted.any():
            return labels
        labels = np.where(is_painted, painted, labels)
        return np.asarray(self._segmenter.refine(labels, clamp=is_painted).labels)

    def guide(self, painted: Labels, random: np.random.Generator) -> Guide | None:
        live = self._segmenter.live()

        def follow(labels: Labels, now: Labels, before: Labels) -> Labels:
            answer = live.exact(_box(now != before), now, before)
            y0, x0, y1, x1 = answer.box
            followed = labels.copy()
            part = followed[y0:y1, x0:x1]
            part[answer.changed] = answer.labels[answer.changed]
            return np.where(now == UNLABELLED, followed, now)

        return Guide(follow, painted, random)


def _box(where: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the box (y0, x0, y1, x1) around pixels, the end excluded."""
    ends = [np.flatnonzero(where.any(axis)) for axis in (1, 0)]
    return int(ends[0][0]), int(ends[1][0]), int(ends[0][-1]) + 1, int(ends[1][-1]) + 1


def run(options: argparse.Namespace) -> None:
    """Measure all tools on all sets, as far as there are no results yet, and show them."""
    options.sets = options.sets or (QUICK_SETS if options.quick else SETS)
    options.n_stream = QUICK_IMAGES if options.quick else IMAGES
    options.results.mkdir(parents=True, exist_ok=True)
    tasks = [
        (name, tool, seed, options)
        for seed in options.seeds
        for name in options.sets
        for tool in reversed(effort_tables.TOOLS)  # ours takes longest
    ]
    for task in tasks:
        whose = "ours" if task[1] == "ours" else "rivals"
        if whose in options.again:
            _path(*task).unlink(missing_ok=True)
    missing = [task for task in tasks if not _path(*task).exists()]
    print(f"{len(missing)} of {len(tasks)} runs to do, in {options.results}", flush=True)
    if options.processes == 1:
        for task in missing:
            _work(task)
    elif missing:
        os.environ["OMP_NUM_THREADS"] = "1"  # each process takes one core, whichever tool it runs
        context = multiprocessing.get_context("spawn")
        with context.Pool(options.processes, maxtasksperchild=1) as pool:
            for _ in pool.imap_unordered(_work, missing, chunksize=1):
                pass
    effort_tables.show(options.results)
    if options.picture:
        effort_tables.plot(options.results, options.picture)


def _path(name: str, tool: str, seed: int, options: argparse.Namespace) -> Path:
    path: Path = options.results / f"{name}-{seed}-{tool.replace(' ', '_')}.json"
    return path


def _work(task: tuple[str, str, int, argparse.Namespace]) -> None:
    name, which, seed, options = task
    torch.set_num_threads(1)
    photographs = PhotographSet(options.data / name, options.side)
    n_labels, model = len(photographs.classes), load_model(options.model)
    tool: Tool | None = None
    if which == "ours":
        tool = Ours(model, photographs.classes, TrainConfig(seconds=options.seconds, seed=seed))
    elif which != effort_tables.BY_HAND:
        tool = Rival(which.removesuffix("+crf"), FeatureStore(model), n_labels, seed)
    found = {"set": name, "seed": seed, "tool": which, "good": GOOD}
    found |= measure(tool, photographs, options.n_stream, options.images, seed)
    path = _path(*task)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1))
    part.replace(path)
    print(effort_tables.line(found), flush=True)


def measure(
    tool: Tool | None, photographs: PhotographSet, n_stream: int, n_scored: int, seed: int
) -> dict[str, Any]:
    """Return what labelling a stream of images takes, with a tool or (None) by hand alone.

    Returns
    -------
    found
        "images": for each its name, its "iou" before anything was painted on it, strokes and clicks.
        "miou": on validation images, after each image. "full": the same after learning the true masks.
    """
    stream = photographs.training(n_stream, seed)
    scored = photographs.validation(n_scored)
    n_labels = len(photographs.classes)
    accepted: list[tuple[Photograph, Labels]] = []
    found: dict[str, Any] = {"images": [], "miou": [], "seconds": 0.0}
    for number, photograph in enumerate(stream):
        effort = Effort()
        if tool is None:
            labels, first = _by_hand(photograph.mask, n_labels, effort)
        else:
            random = np.random.default_rng([seed, number, 13])
            labels, first = _with_tool(tool, photograph, accepted, n_labels, effort, random, found)
        effort.clicks += 1  # Accept
        accepted.append((photograph, labels))
        found["images"].append(
            {"name": photograph.name, "iou": first, "strokes": effort.strokes, "clicks": effort.clicks}
        )
        if tool is not None:
            _learn(tool, accepted, effort, found)
            found["images"][-1]["clicks"] = effort.clicks
            found["miou"].append(_score(tool, scored, n_labels))
    if tool is not None:
        tool.learn([(photograph, photograph.mask) for photograph in stream])
        found["full"] = _score(tool, scored, n_labels)
    return found


def _by_hand(mask: Labels, n_labels: int, effort: Effort) -> tuple[Labels, float]:
    """Fill the image with one class, and paint the others."""
    labels = _filled(mask)
    effort.clicks += 1
    return paint(mask, labels, n_labels, effort, until=GOOD), score(mask, labels, n_labels)


def _filled(mask: Labels) -> Labels:
    """Return the image as the class that is most of it."""
    return np.full(mask.shape, np.bincount(mask[mask != UNLABELLED]).argmax(), np.uint8)


def _with_tool(
    tool: Tool,
    photograph: Photograph,
    accepted: Lesson,
    n_labels: int,
    effort: Effort,
    random: np.random.Generator,
    found: dict[str, Any],
) -> tuple[Labels, float]:
    """Segment, correct, learn, and paint the rest."""
    mask = photograph.mask
    painted = np.full(mask.shape, UNLABELLED, np.uint8)
    if not accepted:
        painted = first_strokes(mask, random, n_regions=1)
        effort.strokes += len(np.unique(mask[mask != UNLABELLED]))
        _learn(tool, [(photograph, painted)], effort, found)
    labels = tool.segment(photograph, painted)
    first = score(mask, labels, n_labels)
    blank = _filled(mask)
    if score(mask, blank, n_labels) > first:
        labels = np.where(painted == UNLABELLED, blank, painted)
        effort.clicks += 1
    for _ in range(LESSONS[bool(accepted)]):
        if score(mask, labels, n_labels) >= GOOD:
            break
        guide = tool.guide(painted, random)
        corrected = paint(mask, labels, n_labels, effort, until=GOOD, at_most=CORRECTED, guide=guide)
        if guide is None:
            changed = corrected != labels
            painted[changed] = corrected[changed]
        _learn(tool, [*accepted, (photograph, painted)], effort, found)
        again = tool.segment(photograph, painted)
        labels = max(corrected, again, key=lambda each: score(mask, each, n_labels))
    by_hand = Effort(effort.strokes, effort.clicks + 1)
    anew = paint(mask, np.where(painted == UNLABELLED, blank, painted), n_labels, by_hand, until=GOOD)
    with_it = Effort(effort.strokes, effort.clicks)
    finished = paint(mask, labels, n_labels, with_it, until=GOOD, guide=tool.guide(painted, random))
    # A person sees when it is hopeless.
    least, done = min((with_it, finished), (by_hand, anew), key=lambda way: way[0].strokes + way[0].clicks)
    effort.strokes, effort.clicks = least.strokes, least.clicks
    return done, first


def _learn(tool: Tool, lesson: Lesson, effort: Effort, found: dict[str, Any]) -> None:
    begun = time.process_time()
    tool.learn(lesson)
    found["seconds"] += time.process_time() - begun
    effort.clicks += 1


def _score(tool: Tool, scored: Sequence[Photograph], n_labels: int) -> float:
    counts = np.zeros((n_labels, n_labels), np.int64)
    for photograph in scored:
        nothing = np.full(photograph.mask.shape, UNLABELLED, np.uint8)
        counts += metrics.confusion(tool.segment(photograph, nothing), photograph.mask, n_labels)
    return metrics.miou(counts)
