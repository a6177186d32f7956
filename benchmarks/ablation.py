"""What a CRF adds to a network, piece by piece: train in three stages, measure each on validation images.

    python benchmarks/ablation.py ../shared/data/camvid11 --recipe benchmarks/recipes/camvid11.toml -o run

Prints the table of docs/results.md. A training that was interrupted goes on; a finished one is only measured.
After the three stages the weights of superpixels (one for each cut and class, from 0) are learned on images
that the first stage has not seen, network and CRF fixed.
The gains are over the network alone of the first stage; in brackets the 5th and 95th percentile of the gain
when the images are drawn with replacement, which knows nothing of other seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_crfasrnn.checkpoint import load_checkpoint
from napari_crfasrnn.config import CrfConfig, HigherOrderConfig, Recipe
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.training import DataSet, Iteration, Score, open_data_set, train
from napari_crfasrnn.training.mask_files import IGNORE
from napari_crfasrnn.training.material import divide, spread

MEASURES = ("mean IoU", "mean band IoU", "mean boundary IoU")
DRAWS = 1000
ALONE = "FCN alone"
SUPERPIXEL_IMAGES = 32  # one optimiser iteration each
SUPERPIXEL_RATE = 0.05  # Adam, falling to 0; in logits


def with_superpixels(data: DataSet, run: Path, recipe: Recipe) -> SegmentationModel:
    """Return the trained model with superpixel weights, from a file or learned now."""
    path = run / "superpixels.safetensors"
    if path.exists():
        return load_checkpoint(path)
    last = load_checkpoint(run / "last.safetensors")
    settings = HigherOrderConfig(superpixel_weight=0.0)
    model = SegmentationModel(
        last.config.model_copy(update={"higher_order": settings}), last.network, last.crf, last.provenance
    )
    terms = model.higher_order
    model.network.requires_grad_(False)
    model.crf.requires_grad_(False)
    optimizer = torch.optim.Adam([terms.superpixels.weights], lr=SUPERPIXEL_RATE)
    samples = spread(divide(data.train, recipe.held_out)[1] or data.train, SUPERPIXEL_IMAGES)
    for number, sample in enumerate(samples):
        pixels, truth = data.load(sample)
        image = torch.from_numpy(pixels)[None]
        refined = model.crf(
            model.logits(image),
            prepared=model.prepare(image),
            potentials=terms.potentials(terms.cut(image)),
            n_iterations=model.crf.config.n_iterations_train,
        )
        labels = torch.from_numpy(truth.astype(np.int64))[None]
        loss = F.cross_entropy(refined, labels, ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.param_groups[0]["lr"] = SUPERPIXEL_RATE * (1 - number / len(samples))
        optimizer.step()
        if (number + 1) % 8 == 0:
            print(f"superpixels {number + 1}/{len(samples)}: {loss.item():.3f}", flush=True)
    model.save(path)
    return model


def scores(data: DataSet, run: Path, recipe: Recipe, count: int) -> dict[str, list[Score]]:
    """Return the score of every variant on every image."""
    superpixels = with_superpixels(data, run, recipe)
    fixed = load_checkpoint(run / "crf.safetensors")
    has_joint = (run / "joint.safetensors").exists()  # a recipe may have no such stage
    joint = load_checkpoint(run / "joint.safetensors") if has_joint else None
    n_labels = data.n_labels
    original = CrfRnn(n_labels, CrfConfig.original()).eval()
    searched = CrfRnn(n_labels, fixed.crf.config).eval()  # its matrices as they were before they were trained
    found: dict[str, list[Score]] = {}
    for sample in spread(data.val, count):
        pixels, truth = data.load(sample)
        image = torch.from_numpy(pixels)[None]
        with torch.no_grad():
            logits = fixed.logits(image)
            crf_image = fixed.crf_image(image)
            prepared = searched.prepare(crf_image)  # widths are not trained: it serves three
            variants: dict[str, Tensor] = {
                ALONE: logits,
                "+ dense CRF, original parameters (160/3/3, weights 5 and 3)": original(logits, crf_image),
                f"+ dense CRF, searched ({_name(searched.config)})": searched(logits, prepared=prepared),
                "+ CRF-RNN trained, FCN fixed": fixed.crf(logits, prepared=prepared),
            }
            if joint is not None:
                inner = joint.logits(image)
                variants["end to end, its FCN alone"] = inner
                variants["end to end"] = joint.crf(inner, prepared=prepared)
            terms = superpixels.higher_order
            last = superpixels.crf(
                superpixels.logits(image), prepared=prepared, potentials=terms.potentials(terms.cut(image))
            )
            variants[f"+ superpixels{', end to end' if joint is not None else ''}"] = last
        for name, values in variants.items():
            given = values[0].argmax(0).to(torch.uint8).numpy()
            found.setdefault(name, []).append(Score.of(given, truth, n_labels))
    return found


def _name(config: CrfConfig) -> str:
    widths = f"{config.theta_alpha:g}/{config.theta_beta:g}/{config.theta_gamma:g}"
    return f"{widths}, weights {config.bilateral_weight:g} and {config.spatial_weight:g}"


def total(some: Sequence[Score]) -> Score:
    """Return the score of several images as one set."""
    first, *rest = some
    for score in rest:
        first = first + score
    return first


def table(found: dict[str, list[Score]], seed: int = 0) -> str:
    """Return the scores and gains as a table in Markdown."""
    rng = np.random.default_rng(seed)
    n_images = len(found[ALONE])
    draws = [rng.integers(0, n_images, n_images) for _ in range(DRAWS)]
    rows = [f"| variant | {' | '.join(MEASURES)} |", "| --- |" + " --- |" * len(MEASURES)]
    alone = {measure: _drawn(found[ALONE], draws, measure) for measure in MEASURES}
    for name, some in found.items():
        cells = []
        for measure in MEASURES:
            value = total(some).summary()[measure]
            cell = f"{value:.3f}"
            if name != ALONE:
                gains = _drawn(some, draws, measure) - alone[measure]
                low, high = np.percentile(gains, [5, 95])
                gain = value - total(found[ALONE]).summary()[measure]
                cell += f" ({gain:+.3f} [{low:+.3f}, {high:+.3f}])"
            cells.append(cell)
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _drawn(some: Sequence[Score], draws: Sequence[np.ndarray], measure: str) -> np.ndarray:
    return np.array([total([some[place] for place in draw]).summary()[measure] for draw in draws])


def _say(iteration: Iteration) -> None:
    if iteration.number % 10 == 0:
        print(f"{iteration.stage} {iteration.number}/{iteration.total}: {iteration.loss:.3f}", flush=True)


def main() -> None:
    """Train what is left to train, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--images", type=int, help="validation images to measure, evenly spread; all if not given"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = Recipe.from_toml(args.recipe)
    data = open_data_set(args.data)
    train(data, args.output, recipe, resume=True, progress=_say)
    count = min(args.images or len(data.val), len(data.val))
    found = scores(data, args.output, recipe, count)
    (args.output / "ablation.json").write_text(
        json.dumps({name: [score.confusion.tolist() for score in some] for name, some in found.items()})
    )
    print(f"{data.folder.name}, {count} of {len(data.val)} validation images, seed {recipe.seed}\n")
    print(table(found))
    weights = load_checkpoint(
        args.output / "superpixels.safetensors"
    ).higher_order.superpixels.weights.detach()
    sizes = HigherOrderConfig().superpixel_sizes
    told = ", ".join(f"{row.mean():+.2f} for {size} px" for row, size in zip(weights, sizes, strict=True))
    print(f"\nlearned weights of the superpixels, mean over the classes: {told}")


if __name__ == "__main__":
    main()
