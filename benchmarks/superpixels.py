"""What superpixel potentials add to the CRF of a model, on photographs with masks.

Weight and share of the superpixels are chosen on images of the train split, by the sum of mIoU and band IoU;
the table is of all images of the val split. The band is 5 pixels to either side of true edges; intervals are
the 5th and 95th percentile of the gain over the CRF when images are drawn again (1000 times, seeded).

    python benchmarks/superpixels.py ../shared/data/msrc21
    python benchmarks/superpixels.py ../shared/data/voc_coco128

Class names that the model does not know are background, but for those in `SYNONYMS`.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn import load_model
from napari_crfasrnn.config import HigherOrderConfig
from napari_crfasrnn.higher_order import HigherOrder
from napari_crfasrnn.kernels import PreparedImage
from napari_crfasrnn.metrics import band_confusion, confusion, miou
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.training.data_sets import DataSet, Sample, open_data_set

IGNORE = 255
SYNONYMS = {"face": "person", "body": "person", "flower": None}  # None: not counted
WEIGHTS = (0.5, 2.0)
SHARES = (0.3, 0.5)
N_RESAMPLES = 1000

Counts = NDArray[np.int64]  # [images, 2, L, L]: the confusion of all pixels, and of those in the band


@dataclass(frozen=True)
class Case:
    logits: Tensor  # [1, L, H, W]
    prepared: PreparedImage
    superpixels: Tensor  # [1, K, H, W]
    truth: NDArray[np.uint8]  # [H, W]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--method", choices=["slic", "felzenszwalb"], default="slic")
    parser.add_argument("--train", type=int, default=8, help="images of the train split to choose on")
    options = parser.parse_args()
    data, model = open_data_set(options.data), load_model(options.model)
    terms = HigherOrder(model.n_labels, HigherOrderConfig(superpixels=options.method))
    drawn = np.random.default_rng(0).permutation(len(data.train))[: options.train]
    begun = time.perf_counter()
    training = list(cases(model, terms, data, [data.train[i] for i in sorted(drawn)]))
    print(f"{len(training)} train images prepared in {time.perf_counter() - begun:.0f} s", flush=True)
    show("train: CRF", measure(model, terms, training, crf=True))
    found = {}
    for weight, share in itertools.product(WEIGHTS, SHARES):
        setting(terms, weight, share)
        counts = measure(model, terms, training, crf=True, superpixels=True)
        found[weight, share] = sum(scores(counts))
        show(f"train: + superpixels, weight {weight}, share {share}", counts)
    weight, share = max(found, key=found.__getitem__)
    validation = list(cases(model, terms, data, data.val))
    print(f"val: {len(validation)} images, superpixels of weight {weight} and share {share}", flush=True)
    show("network", measure(model, terms, validation, crf=False))
    plain = measure(model, terms, validation, crf=True)
    show("CRF", plain)
    setting(terms, weight, share)
    begun = time.perf_counter()
    show("CRF + superpixels", measure(model, terms, validation, crf=True, superpixels=True), plain)
    print(f"{(time.perf_counter() - begun) / len(validation):.1f} s an image")


def cases(
    model: SegmentationModel, terms: HigherOrder, data: DataSet, samples: tuple[Sample, ...] | list[Sample]
) -> Iterator[Case]:
    place = {spec.name: number for number, spec in enumerate(model.classes)}
    table = np.full(256, IGNORE, np.uint8)
    for value, spec in enumerate(data.classes):
        name = SYNONYMS.get(spec.name, spec.name)
        table[value] = IGNORE if name is None else place.get(name, 0)
    for sample in samples:
        pixels, labels = data.load(sample)
        image = torch.from_numpy(pixels)[None]
        with torch.inference_mode():
            logits = model.logits(image)
        prepared = model.prepare(image)
        yield Case(logits, prepared, terms.cut(image), table[labels])


def setting(terms: HigherOrder, weight: float, share: float) -> None:
    with torch.no_grad():
        terms.superpixels.weights.fill_(weight)
    terms.superpixels.share = share


def measure(
    model: SegmentationModel, terms: HigherOrder, images: list[Case], *, crf: bool, superpixels: bool = False
) -> Counts:
    counts = []
    for case in images:
        logits = case.logits
        with torch.inference_mode():
            if crf:
                potentials = terms.potentials(case.superpixels) if superpixels else []
                logits = model.crf(logits, prepared=case.prepared, potentials=potentials)
        given = logits[0].argmax(0).numpy()
        counts.append(
            [
                confusion(given, case.truth, model.n_labels),
                band_confusion(given, case.truth, model.n_labels),
            ]
        )
    return np.array(counts)


def scores(counts: Counts) -> tuple[float, float]:
    both = counts.sum(axis=0)
    return miou(both[0]), miou(both[1])


def show(name: str, counts: Counts, baseline: Counts | None = None) -> None:
    whole, band = scores(counts)
    line = f"{name:50s} mIoU {whole:.4f}  band {band:.4f}"
    if baseline is not None:
        generator = np.random.default_rng(0)
        gains = []
        for _ in range(N_RESAMPLES):
            drawn = generator.integers(0, len(counts), len(counts))
            gains.append(np.subtract(scores(counts[drawn]), scores(baseline[drawn])))
        low, high = np.percentile(gains, [5, 95], axis=0)
        gain = np.subtract(scores(counts), scores(baseline))
        line += "".join(f"  {g:+.4f} [{a:+.4f}, {b:+.4f}]" for g, a, b in zip(gain, low, high, strict=True))
    print(line, flush=True)


if __name__ == "__main__":
    main()
