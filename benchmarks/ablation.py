"""What a CRF adds to a network, piece by piece: train in three stages, measure each on validation images.

    python benchmarks/ablation.py ../shared/data/camvid11 --recipe benchmarks/recipes/camvid11.toml -o run

Prints the table of docs/results.md. A training that was interrupted goes on; a finished one is only measured.
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
from torch import Tensor

from napari_crfasrnn.checkpoint import load_checkpoint
from napari_crfasrnn.config import CrfConfig, Recipe
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.training import DataSet, Iteration, Score, open_data_set, train

MEASURES = ("mean IoU", "mean band IoU", "mean boundary IoU")
DRAWS = 1000
ALONE = "FCN alone"


def scores(data: DataSet, run: Path, count: int) -> dict[str, list[Score]]:
    """Return the score of every variant on every image."""
    fixed = load_checkpoint(run / "crf.safetensors")
    has_joint = (run / "joint.safetensors").exists()  # a recipe may have no such stage
    joint = load_checkpoint(run / "joint.safetensors") if has_joint else None
    n_labels = data.n_labels
    original = CrfRnn(n_labels, CrfConfig.original()).eval()
    searched = CrfRnn(n_labels, fixed.crf.config).eval()  # its matrices as they were before they were trained
    found: dict[str, list[Score]] = {}
    samples = [data.val[place * len(data.val) // count] for place in range(count)]
    for sample in samples:
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
    found = scores(data, args.output, count)
    (args.output / "ablation.json").write_text(
        json.dumps({name: [score.confusion.tolist() for score in some] for name, some in found.items()})
    )
    print(f"{data.folder.name}, {count} of {len(data.val)} validation images, seed {recipe.seed}\n")
    print(table(found))


if __name__ == "__main__":
    main()
