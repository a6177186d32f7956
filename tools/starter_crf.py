"""How the CRF of a shipped model is fitted: kernel widths by search, then its matrices by gradient.

Everything happens on images with human masks that the network has not seen: on its own training
photographs it is too sure for a CRF to learn from. The network stays as it is. One third of the
photographs only decides which of the candidates is kept, or whether any is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_crfasrnn.config import CrfConfig, WeightForm
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.network import SegmentationModel
from starter_data import IGNORE, Labelled
from starter_evaluate import Score, mean, pixels_of, score_labels

WIDTHS = ((10, 8), (20, 8), (40, 5), (40, 8), (80, 5))  # theta_alpha, theta_beta
BILATERAL_WEIGHTS = (1.0, 2.0, 4.0)
SEARCH_PHOTOS = 16
CROP = 224  # pixels
ITERATIONS = 160
BATCH = 2
MATRIX_RATE = 0.03
SCALE_RATE = 0.015
CLASS_WEIGHT_POWER = 0.25
ENOUGH_PHOTOS = 4  # a class in fewer photographs keeps the common weight: nothing is known about it
MARGIN = 0.005  # what a CRF must gain, mean of IoU and band IoU, to be kept

Say = Callable[[str], None]


@dataclass(frozen=True)
class CrfRecipe:
    """What is tried and how long; by default what suits the starter."""

    widths: Sequence[tuple[float, float]] = field(default_factory=lambda: WIDTHS)
    weights: Sequence[float] = field(default_factory=lambda: BILATERAL_WEIGHTS)
    search_photos: int = SEARCH_PHOTOS
    iterations: int = field(default_factory=lambda: ITERATIONS)
    margin: float = MARGIN
    weight_form: WeightForm = "full"


@dataclass(frozen=True)
class Case:
    """One image as the CRF meets it."""

    dataset: str
    image: Tensor  # float32 [1, C, H, W], 0..255
    logits: Tensor  # float16 [1, L, H, W]
    mask: np.ndarray  # uint8 [H, W]


@torch.inference_mode()
def cases(model: SegmentationModel, photos: Sequence[Labelled]) -> list[Case]:
    """Run the network once over the photographs."""
    found = []
    for photo in photos:
        image = pixels_of(photo)
        seen, logits = model.crf_image(image), model.logits(image).half()
        found.append(Case(photo.dataset, seen, logits, photo.mask()))
    return found


def fit_crf(
    model: SegmentationModel,
    photos: Sequence[Labelled],
    seed: int,
    say: Say = print,
    recipe: CrfRecipe | None = None,
) -> CrfRnn:
    """Return the CRF that helps most on photographs unseen by it, or one that does nothing."""
    recipe = recipe or CrfRecipe()
    shuffled = sorted(photos, key=lambda photo: (photo.dataset, crc32(photo.key.encode())))
    judges = shuffled[::3]
    judging = cases(model, judges)
    fitting = cases(model, [photo for photo in photos if photo not in judges])
    say(f"  {len(fitting)} photographs to fit the CRF on, {len(judging)} to judge it")
    searched = _search(fitting, model.n_labels, recipe, seed, say)
    trained = _train(searched, fitting, recipe.iterations, seed, say)
    silent = CrfRnn(model.n_labels, searched.config).eval()
    with torch.no_grad():
        silent.spatial_weights.zero_()
        silent.bilateral_weights.zero_()
    merits = {}
    for name, crf in (("no CRF", silent), ("searched", searched), ("trained", trained)):
        score = _score(crf, judging)
        merits[name] = _merit(score)
        say(f"  judged, {name}: mIoU {mean(score.iou_crf):.4f}, band {mean(score.band_crf):.4f}")
    best = max(merits, key=merits.__getitem__)
    if best == "no CRF" or merits[best] < merits["no CRF"] + recipe.margin:
        say("  no CRF helps enough: it is left to do nothing")
        return silent
    if best == "searched":
        say("  kept: searched")
        return searched
    say("  kept: trained, fitted again on all of them")
    return _train(searched, fitting + judging, recipe.iterations, seed, say)


def _merit(score: Score) -> float:
    return (mean(score.iou_crf) + mean(score.band_crf)) / 2


@torch.inference_mode()
def _score(crf: CrfRnn, some: Sequence[Case]) -> Score:
    refined = [crf(case.logits.float(), case.image)[0].argmax(0).numpy().astype(np.uint8) for case in some]
    plain = [case.logits[0].argmax(0).numpy().astype(np.uint8) for case in some]
    return score_labels("held out", [case.mask for case in some], plain, refined, crf.n_labels)


def _search(fitting: Sequence[Case], n_labels: int, recipe: CrfRecipe, seed: int, say: Say) -> CrfRnn:
    """Try the short list of kernel widths and weights; all data sets speak equally loud."""
    rng = np.random.default_rng(seed)
    chosen: list[Case] = []
    names = sorted({case.dataset for case in fitting})
    for name in names:
        members = [case for case in fitting if case.dataset == name]
        count = min(len(members), recipe.search_photos // len(names))
        chosen += [members[i] for i in rng.choice(len(members), count, replace=False)]
    best, best_merit = None, -1.0
    for (alpha, beta), weight in itertools.product(recipe.widths, recipe.weights):
        config = CrfConfig.starter().model_copy(
            update={
                "theta_alpha": float(alpha),
                "theta_beta": float(beta),
                "bilateral_weight": weight,
                "weight_form": recipe.weight_form,
            }
        )
        crf = CrfRnn(n_labels, config).eval()
        merit = _merit(_score(crf, chosen))
        say(f"  widths {alpha}/{beta}, weight {weight:g}: {merit:.4f}")
        if merit > best_merit:
            best, best_merit = crf, merit
    assert best is not None
    return best


def _train(start: CrfRnn, fitting: Sequence[Case], iterations: int, seed: int, say: Say) -> CrfRnn:
    """Train full matrices and scales of a CRF from ``start``, on crops of the photographs."""
    crf = CrfRnn(start.n_labels, start.config)
    crf.load_state_dict(start.state_dict())
    crf.train()
    crf.compatibility.requires_grad_(False)  # a product with the weights: one of them is enough
    known = _known_classes(fitting, start.n_labels)
    matrices, scales = (
        [crf.spatial_weights, crf.bilateral_weights],
        [crf.log_unary_scale, crf.log_output_scale],
    )
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "lr": MATRIX_RATE}, {"params": scales, "lr": SCALE_RATE}],
        betas=(0.9, 0.99),
        weight_decay=0.0,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: (1 - i / iterations) ** 0.9)
    rng = np.random.default_rng(seed)
    weights = _class_weights(fitting, start.n_labels)
    names = sorted({case.dataset for case in fitting})
    groups = [[case for case in fitting if case.dataset == name] for name in names]
    running = 0.0
    for i in range(iterations):
        for _ in range(BATCH):
            group = groups[rng.integers(len(groups))]
            image, logits, mask = _crop(group[rng.integers(len(group))], rng)
            refined = crf(logits.float(), image)
            loss = (
                F.cross_entropy(refined, mask, weights, ignore_index=IGNORE)
                if (mask != IGNORE).any()
                else None
            )
            if loss is not None:
                (loss / BATCH).backward()
                running += (loss.item() - running) * (0.02 if i else 1.0)
        for matrix in matrices:
            if matrix.grad is not None:
                _share_gradient(matrix.grad, known)
        torch.nn.utils.clip_grad_norm_([*matrices, *scales], 5.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if i % 40 == 39:
            say(f"  CRF iteration {i + 1}/{iterations}: loss {running:.4f}")
    _settle_unknown(matrices, known)
    return crf.eval()


def _known_classes(some: Sequence[Case], n_labels: int) -> Tensor:
    counts = np.zeros(n_labels, int)
    for case in some:
        counts += np.bincount(case.mask.ravel(), minlength=256)[:n_labels] > 0
    return torch.from_numpy(counts >= ENOUGH_PHOTOS)


def _share_gradient(gradient: Tensor, known: Tensor) -> None:
    """Keep the gradient between known classes only.

    The optimiser would blow up the tiny gradients of classes that hardly occur, and teach the CRF
    that they do not exist.
    """
    gradient *= known[:, None] & known[None, :]


@torch.no_grad()
def _settle_unknown(matrices: Sequence[Tensor], known: Tensor) -> None:
    """Give classes without photographs the mean diagonal of those with some."""
    for matrix in matrices:
        common = matrix.diagonal()[known].mean()
        for value in torch.nonzero(~known).flatten().tolist():
            matrix[value, value] = common


def _class_weights(some: Sequence[Case], n_labels: int) -> Tensor:
    counts = torch.zeros(n_labels)
    for case in some:
        counts += torch.from_numpy(np.bincount(case.mask.ravel(), minlength=256)[:n_labels]).float()
    share = (counts / counts.sum()).clamp_min(1e-3)
    weights = share**-CLASS_WEIGHT_POWER
    return weights / (weights * share).sum()


def _crop(case: Case, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    h, w = case.mask.shape
    y, x = (int(rng.integers(max(1, side - CROP + 1))) for side in (h, w))
    window = np.s_[..., y : y + CROP, x : x + CROP]
    mask = torch.from_numpy(case.mask[window].astype(np.int64))[None]
    return case.image[window], case.logits[window], mask
