"""Train the small models beside the starter, or measure them.

    python tools/train_heads.py ../shared/data                          # all of them
    python tools/train_heads.py ../shared/data nuclei-fluorescence      # one
    python tools/train_heads.py ../shared/data --evaluate               # those in the package

The data and their terms are in docs/models.md and tools/heads_data.py. A model is a head (`FcnFine`) on the
early blocks of the starter's encoder, which stay as they are and are not repeated in its file, and a CRF.
Steps: train the head on windows of the training images but those held out, fit the CRF on the latter,
save, measure. The same seed, data and number of threads give the same model.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from heads_data import RECIPES, Micrograph, OtherStain, Recipe, read_images
from napari_crfasrnn.checkpoint import load_checkpoint, round_to_half, save_checkpoint
from napari_crfasrnn.classes import class_table
from napari_crfasrnn.config import Augmentation, ModelConfig
from napari_crfasrnn.fcn_fine import FcnFine
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.training.windows import Window, draw_window
from napari_crfasrnn.zoo import STARTER, load_model
from stains import restained
from starter_crf import CrfRecipe, fit_crf
from starter_data import IGNORE
from starter_evaluate import Score, evaluate_on, pixels_of, table

PACKAGE_DATA = Path(__file__).resolve().parents[1] / "src" / "napari_crfasrnn" / "data"
RATE, WARM_UP, DECAY = 3e-3, 50, 1e-4
CLASS_WEIGHT_POWER, RAREST = 0.3, 1e-3
# None, unlike the starter's: at stride 2 there is little to gain, but strokes need a CRF to spread to edges.
CRF_MARGIN = 0.0
RESTAINED = 0.6  # share of the windows of stained tissue that are drawn in other colours
MEMORY = 0.995  # of the running mean of the weights, which is the result


def say(text: str) -> None:
    """Print with the time of day, at once."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Windows:
    """Draws training windows of images that are held in memory, stretched as the model will see them."""

    def __init__(self, images: list[Micrograph], model: SegmentationModel, recipe: Recipe, seed: int) -> None:
        self._images = [model.stretched(pixels_of(image))[0].to(torch.uint8).numpy() for image in images]
        self._masks = [image.mask() for image in images]
        sets = np.array([image.dataset for image in images])
        shares = [1 / (len(recipe.sets) * (sets == dataset).sum()) for dataset in sets]
        self._shares, self._recipe = np.array(shares), recipe
        self._augmentation = Augmentation(crop=recipe.crop, scale=recipe.scale, colour=0.15)
        self._random = np.random.default_rng(seed)

    def class_weights(self, n_labels: int) -> Tensor:
        """Return (1 / frequency) ** power per class, 1 on average over pixels."""
        counts = np.zeros(n_labels)
        for mask, share in zip(self._masks, self._shares, strict=True):
            counts += share * np.bincount(mask.ravel(), minlength=256)[:n_labels] / mask.size
        frequency = torch.from_numpy(counts / counts.sum()).float().clamp_min(RAREST)
        weights = frequency**-CLASS_WEIGHT_POWER
        return weights / (weights * frequency).sum()

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return a batch, [B, 3, s, s] of 0..255 and labels [B, s, s]."""
        windows = [self._one() for _ in range(self._recipe.batch)]
        images = torch.stack([window.image.expand(3, -1, -1) for window in windows])
        return images, torch.stack([window.labels for window in windows])

    def _one(self) -> Window:
        random = self._random
        number = int(random.choice(len(self._images), p=self._shares))
        pixels = self._images[number].astype(np.float32)
        window = draw_window(pixels, self._masks[number], self._augmentation, random)
        image, labels = window.image, window.labels
        if self._recipe.stains and len(image) == 3 and random.random() < RESTAINED:
            image = torch.from_numpy(restained(image.numpy(), random))
        gamma = float(np.exp(random.normal(0, 0.2)))
        image = 255 * (image / 255) ** gamma
        image = image + float(abs(random.normal(0, 4))) * torch.from_numpy(
            random.standard_normal(image.shape).astype(np.float32)
        )
        if self._recipe.tints and random.random() < 0.3:
            gains = torch.from_numpy(random.uniform(0, 1, 3).astype(np.float32) ** 2)
            image = image.expand(3, -1, -1) * (gains / gains.max())[:, None, None]
        if self._recipe.turns:
            quarter = int(random.integers(4))
            image, labels = image.rot90(quarter, (-2, -1)), labels.rot90(quarter, (-2, -1))
        return Window(image.clamp(0, 255), labels)


def train_head(model: SegmentationModel, windows: Windows, iterations: int) -> None:
    """Train the head in place; the result is a running mean of its weights."""
    network = model.network
    assert isinstance(network, FcnFine)
    weights = windows.class_weights(model.n_labels)
    settings = model.config.preprocessing
    mean, std = settings.mean[0], settings.std[0]
    head = network.head_parameters()
    average = [parameter.detach().clone() for parameter in head]
    optimizer = torch.optim.AdamW(head, lr=RATE, weight_decay=DECAY)
    started, running = time.monotonic(), 0.0
    for i in range(iterations):
        factor = min(1.0, (i + 1) / WARM_UP) * (1 - i / iterations) ** 0.9
        for group in optimizer.param_groups:
            group["lr"] = RATE * factor
        images, labels = windows.draw()
        with torch.no_grad():
            features = network.encode((images - mean) / std)
        logits = network.decode_coarse(features)
        last = network.stride - 1  # a cell sits at its last pixel
        target = labels[:, last :: network.stride, last :: network.stride]
        loss = F.cross_entropy(logits, target, weights, ignore_index=IGNORE)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head, 5.0)
        optimizer.step()
        with torch.no_grad():
            for kept, parameter in zip(average, head, strict=True):
                kept.lerp_(parameter, 1 - min(MEMORY, (i + 1) / (i + 10)))
        running += (loss.item() - running) * (0.02 if i else 1.0)
        if i % 100 == 99:
            say(f"  iteration {i + 1}/{iterations}: loss {running:.4f}, {time.monotonic() - started:.0f} s")
    with torch.no_grad():
        for kept, parameter in zip(average, head, strict=True):
            parameter.copy_(kept)


def build(
    name: str, data: Path, out: Path, seed: int, *, iterations: int | None = None, crf_only: bool = False
) -> None:
    """Train one model and save it; or only the CRF of one that is there."""
    recipe, path = RECIPES[name], out / f"{name}.safetensors"
    torch.manual_seed(seed)
    config = ModelConfig(
        architecture="fcn-fine", classes=class_table(recipe.classes), preprocessing=recipe.preprocessing
    )
    model = SegmentationModel(config)
    model.network.encoder.load_state_dict(load_model(STARTER).network.encoder.state_dict())
    taught = read_images(data, recipe, "train", apart=True)
    fit = [image for image in taught if not recipe.held_out(image.name)]
    held = [image for image in read_images(data, recipe, "train") if recipe.held_out(image.name)]
    say(f"{name}: {len(fit)} images to train on, {len(held)} held out for the CRF")
    if crf_only:
        old = load_checkpoint(path)
        model = SegmentationModel(old.config, old.network)
    else:
        train_head(model, Windows(fit, model, recipe, seed), iterations or recipe.iterations)
        model = model.with_classes([name for name in recipe.classes if name not in recipe.joined])
        round_to_half(model.network)
    model = model.with_crf(fit_crf(model, held, seed, say, CrfRecipe(margin=CRF_MARGIN, **recipe.crf)))
    say(f"held out\n{table([evaluate_on(model, 'held out', held)], model.classes)}")
    scores = measure(model, data, recipe)
    say(f"measured\n{table(scores, model.classes)}")
    model.provenance = {
        "title": recipe.title,
        "licence": recipe.licence,
        "sources": recipe.sources,
        "trained_on": [f"{dataset} train" for dataset in recipe.sets],
        "validation": {score.name: score.as_json() for score in scores},
        "command": f"python tools/train_heads.py ../shared/data {name}",
        "seed": seed,
    }
    save_checkpoint(model, path, borrow_encoder=True)
    say(f"saved {path}, {path.stat().st_size / 1e6:.2f} MB")


def measure(model: SegmentationModel, data: Path, recipe: Recipe) -> list[Score]:
    """Score a model on the validation list of each of its sets, of stained tissue also in other colours."""
    validation = read_images(data, recipe, "val")
    scores = []
    for dataset in recipe.sets:
        images = [image for image in validation if image.dataset == dataset]
        scores.append(evaluate_on(model, f"{dataset} val", images))
        if recipe.stains:
            others = [OtherStain(image.dataset, image.name, image.folder, image.joined) for image in images]
            scores.append(evaluate_on(model, f"{dataset} val in other colours", others))
    return scores


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Train or measure the small models beside the starter.")
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("names", nargs="*", choices=[[], *RECIPES], help="which models; none: all")
    parser.add_argument("-o", "--out", type=Path, default=PACKAGE_DATA, help="folder of the models")
    parser.add_argument("--evaluate", action="store_true", help="measure the models in --out and stop")
    parser.add_argument("--crf-only", action="store_true", help="fit the CRFs of the models in --out again")
    parser.add_argument("--iterations", type=int, help="of the head, instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or RECIPES:
        if args.evaluate:
            model = load_checkpoint(args.out / f"{name}.safetensors")
            print(f"{name}\n{table(measure(model, args.data, RECIPES[name]), model.classes)}", flush=True)
        else:
            build(
                name,
                args.data,
                args.out,
                args.seed,
                iterations=args.iterations,
                crf_only=args.crf_only,
            )


if __name__ == "__main__":
    main()
