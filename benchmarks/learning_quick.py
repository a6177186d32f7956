"""Learning from few labels, quickly: one or three images of each set, strokes or whole masks.

Prints the mean IoU on validation images that no learner saw, of

- ours: `fine_tune` from the starter model, without and with its CRF;
- a random forest on scikit-image's multiscale features, as many annotation tools have it
  (needs scikit-learn, which this project does not; left out without it).

    python benchmarks/learning_quick.py ../shared/data --sets dsb2018_fluo histo_gbm40 --k 1 3

Strokes are three random walks per class and image, at most 60 pixels long and 3 wide, inside the mask.
Images are cut to their middle 416 pixels. Everything is seeded.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.feature import multiscale_basic_features

from napari_crfasrnn import Project, Segmenter, TrainConfig, fine_tune, load_model, metrics
from napari_crfasrnn.network import SegmentationModel

SIDE = 416
STROKES, STROKE_LENGTH = 3, 60
FOREST = {"n_estimators": 40, "max_depth": 12, "class_weight": "balanced", "random_state": 0}
FOREST_PIXELS = 4000  # of a whole mask

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Predict = Callable[[NDArray[np.uint8]], NDArray[np.integer]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--sets", nargs="+", default=["dsb2018_fluo", "dsb2018_stained", "em_vnc", "histo_gbm40", "camvid11"]
    )
    parser.add_argument("--k", nargs="+", type=int, default=[1, 3])
    parser.add_argument("--labels", nargs="+", choices=["strokes", "dense"], default=["strokes", "dense"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--validation", type=int, default=6, help="images of each set")
    parser.add_argument("--on", choices=["val", "train"], default="val", help="train: for choosing settings")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--no-forest", action="store_true")
    options = parser.parse_args()
    model = load_model(options.model)
    print("set              labels    k   ours   +CRF forest seconds  steps")
    for kind in options.labels:
        for k in options.k:
            rows = [row(options, model, name, kind, k) for name in options.sets]
            means = np.nanmean(rows, axis=0)
            print(
                f"{'mean':16s} {kind:8s} {k:2d} {means[0]:6.3f} {means[1]:6.3f} {means[2]:6.3f}", flush=True
            )


def row(options: argparse.Namespace, model: SegmentationModel, name: str, kind: str, k: int) -> list[float]:
    """Learn one set, print its line, and return the three scores."""
    folder = options.data / name
    classes = (folder / "classes.txt").read_text().split()
    # Training images come first in a seed's order, so the last ones of the train split are free.
    last = -options.validation if options.on == "train" else 0
    scores, seconds, steps = [], 0.0, 0
    for seed in range(options.seeds):
        training = draw_images(folder, "train", k, seed)
        validation = draw_images(folder, options.on, options.validation, seed if last else 0, start=last)
        if kind == "strokes":
            training = [(image, strokes(mask, 100 * seed + i)) for i, (image, mask) in enumerate(training)]
        begun = time.perf_counter()
        learnt, steps = learn(model, classes, training, TrainConfig(seconds=options.seconds, seed=seed))
        seconds += time.perf_counter() - begun
        rivals = [predictor(learnt, crf=False), predictor(learnt, crf=True)]
        found = [score(predict, validation, len(classes)) for predict in rivals]
        found.append(np.nan if options.no_forest else forest_score(training, validation, len(classes)))
        scores.append(found)
    ours, with_crf, forest = np.mean(scores, axis=0)
    line = f"{name:16s} {kind:8s} {k:2d} {ours:6.3f} {with_crf:6.3f} {forest:6.3f}"
    print(f"{line} {seconds / options.seeds:7.1f} {steps:6d}", flush=True)
    return [ours, with_crf, forest]


def draw_images(folder: Path, split: str, n: int, seed: int, start: int = 0) -> list[Pair]:
    """Return some images of a split with their masks, cut to the middle, from a place in the seed's order."""
    names = (folder / f"{split}.txt").read_text().split()
    order = np.random.default_rng([seed, 7]).permutation(len(names))
    chosen = order[start:][:n]
    return [read_pair(folder, names[i]) for i in chosen]


def read_pair(folder: Path, name: str) -> Pair:
    (path,) = (folder / "images").glob(f"{name}.*")
    image, mask = np.asarray(Image.open(path)), np.asarray(Image.open(folder / "masks" / f"{name}.png"))
    if image.ndim == 3:
        image = image[..., :3]
    y0, x0 = (max(0, (side - SIDE) // 2) for side in mask.shape)
    return image[y0 : y0 + SIDE, x0 : x0 + SIDE], mask[y0 : y0 + SIDE, x0 : x0 + SIDE]


def strokes(mask: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Return random walks inside the regions of a mask; everything else is unlabelled."""
    random = np.random.default_rng([seed, 11])
    labels = np.full(mask.shape, 255, np.uint8)
    for value in np.unique(mask[mask != 255]):
        starts = np.argwhere(mask == value)
        for _ in range(STROKES):
            y, x = starts[random.integers(len(starts))].astype(float)
            angle = random.uniform(0, 2 * np.pi)
            for _ in range(STROKE_LENGTH):
                brush = np.s_[max(0, round(y) - 1) : round(y) + 2, max(0, round(x) - 1) : round(x) + 2]
                labels[brush][mask[brush] == value] = value
                for attempt in range(8):
                    turned = angle + random.normal(0, 0.3 + 0.3 * attempt)
                    y1, x1 = y + np.sin(turned), x + np.cos(turned)
                    inside = 0 <= round(y1) < mask.shape[0] and 0 <= round(x1) < mask.shape[1]
                    if inside and mask[round(y1), round(x1)] == value:
                        y, x, angle = y1, x1, turned
                        break
                else:
                    break
    return labels


def learn(
    model: SegmentationModel, classes: list[str], training: list[Pair], config: TrainConfig
) -> tuple[SegmentationModel, int]:
    """Return a model that learnt some labelled images, and how many iterations it took."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Project.create(Path(folder) / "project", classes) as project,
    ):
        for image, labels in training:
            project.add(image, labels=labels)
        report = fine_tune(model, project, config)
    return report.model, len(report.history)


def predictor(model: SegmentationModel, *, crf: bool) -> Predict:
    segmenter = Segmenter(model)

    def predict(image: NDArray[np.uint8]) -> NDArray[np.integer]:
        segmenter.set_image(image)
        return segmenter.predict(crf=crf).labels

    return predict


def forest_score(training: list[Pair], validation: list[Pair], n_labels: int) -> float:
    """Return the score of a random forest on classic features, NaN without scikit-learn."""
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError:
        return float("nan")
    random = np.random.default_rng(0)
    rows, targets = [], []
    for image, labels in training:
        features = classic_features(image)
        known = np.argwhere(labels != 255)
        if len(known) > 2 * FOREST_PIXELS:
            values = labels[tuple(known.T)]
            chance = np.bincount(values)[values] ** -0.5
            known = known[random.choice(len(known), FOREST_PIXELS, replace=False, p=chance / chance.sum())]
        rows.append(features[tuple(known.T)])
        targets.append(labels[tuple(known.T)])
    forest = RandomForestClassifier(**FOREST).fit(np.concatenate(rows), np.concatenate(targets))

    def predict(image: NDArray[np.uint8]) -> NDArray[np.integer]:
        features = classic_features(image)
        given: NDArray[np.integer] = forest.predict(features.reshape(-1, features.shape[-1]))
        return given.reshape(features.shape[:2])

    return score(predict, validation, n_labels)


def classic_features(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    channel_axis = -1 if image.ndim == 3 else None
    found: NDArray[np.float32] = multiscale_basic_features(image, channel_axis=channel_axis, sigma_max=16)
    return found


def score(predict: Predict, validation: list[Pair], n_labels: int) -> float:
    counts = np.zeros((n_labels, n_labels), np.int64)
    for image, mask in validation:
        counts += metrics.confusion(predict(image), mask, n_labels)
    return metrics.miou(counts)


if __name__ == "__main__":
    main()
