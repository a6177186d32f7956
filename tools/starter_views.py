"""Training views kept on disk: the frozen encoder's features and the targets of each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_crfasrnn.deeplab import CONTEXT_CHANNELS
from napari_crfasrnn.deeplab import STRIDE as SECOND_STRIDE
from napari_crfasrnn.encoder import FEATURE_CHANNELS
from napari_crfasrnn.fcn import FcnLite, Features
from starter_data import IGNORE, N_LABELS, VIEW, Photo, random_views
from starter_paste import PASTED_SHARE, Scrapbook

N_VIEWS = {"distill_pseudo_voc": 4, "msrc21": 3, "voc_coco128": 12}
SOFT_STEP = 8  # pixels of a view per cell of its soft targets, the network's finest stride
HARD_STEP = 4  # pixels of a view per cell of its hard targets

_ENCODE_BATCH = 4  # small enough for a processor's cache
# Channels and stride of each map of features.
_MAPS = {
    **{f"f{s}": (c, s) for c, s in zip(FEATURE_CHANNELS, (8, 16, 32), strict=True)},
    "second": (CONTEXT_CHANNELS, SECOND_STRIDE),
}
_HARD_SHAPE = (VIEW // HARD_STEP, VIEW // HARD_STEP)
# COCO's objects stay among themselves, so that leaving out its views leaves out all of it.
_PASTED_INTO = {
    "distill_pseudo_voc": ("distill_pseudo_voc", "msrc21"),
    "msrc21": ("distill_pseudo_voc", "msrc21"),
    "voc_coco128": ("distill_pseudo_voc", "msrc21", "voc_coco128"),
}


@dataclass(frozen=True)
class Batch:
    """Some views: features, a hard target (255 = none) and a soft target (all zero = none)."""

    features: Features  # [B, 40, 40, 40], [B, 112, 20, 20], [B, 320, 10, 10], perhaps [B, 256, 20, 20]
    hard: Tensor  # int64 [B, 80, 80]
    soft: Tensor  # float32 [B, L, 40, 40]


class ViewStore:
    """All views of the training photographs, in memory-mapped files of one folder."""

    def __init__(self, folder: Path, n_views: int, n_maps: int, mode: str) -> None:
        self._names = tuple(_MAPS)[:n_maps]
        kinds: dict[str, tuple[type, tuple[int, ...]]] = {
            name: (np.float16, (_MAPS[name][0], VIEW // _MAPS[name][1], VIEW // _MAPS[name][1]))
            for name in self._names
        }
        kinds["hard"] = (np.uint8, (VIEW // HARD_STEP, VIEW // HARD_STEP))
        kinds["soft"] = (np.uint8, (N_LABELS, VIEW // SOFT_STEP, VIEW // SOFT_STEP))
        folder.mkdir(parents=True, exist_ok=True)
        self._maps = {
            name: np.memmap(folder / f"{name}.bin", dtype, mode, shape=(n_views, *shape))
            for name, (dtype, shape) in kinds.items()
        }
        self.weights = np.zeros(n_views)  # how often a view is drawn

    def __len__(self) -> int:
        return len(self.weights)

    def put(self, start: int, features: Sequence[Tensor], hard: np.ndarray, soft: np.ndarray) -> None:
        """Write views from ``start`` on."""
        stop = start + len(hard)
        for name, values in zip(self._names, features, strict=True):
            self._maps[name][start:stop] = values.to(torch.float16).numpy()
        self._maps["hard"][start:stop] = hard
        self._maps["soft"][start:stop] = soft

    def draw(self, size: int, rng: np.random.Generator) -> Batch:
        """Draw a batch of views by their weights."""
        chosen = np.sort(rng.choice(len(self), size, p=self.weights))
        return Batch(
            tuple(torch.from_numpy(self._maps[name][chosen]).float() for name in self._names),
            torch.from_numpy(self._maps["hard"][chosen].astype(np.int64)),
            torch.from_numpy(self._maps["soft"][chosen]).float() / 255,
        )


def build_views(
    photos: Sequence[Photo],
    network: FcnLite,
    soft_targets: Callable[[Photo], np.ndarray],
    about: str,
    folder: Path,
    seed: int,
    n_views: dict[str, int] = N_VIEWS,
    without: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> ViewStore:
    """Encode all views of ``photos``, or open them if ``folder`` holds them already.

    Views of the sets ``without`` are there but never drawn. What is pasted into a view of MSRC or of the
    teacher's photographs is from those two; into one of COCO's, from all three.
    """
    counts = [n_views[photo.dataset] for photo in photos]
    recipe = json.dumps([seed, VIEW, [photo.key for photo in photos], counts, about])
    n_maps = 3 if network.deeplab is None else 4
    written = folder / "recipe.json"
    if written.exists() and written.read_text() == recipe:
        store = ViewStore(folder, sum(counts), n_maps, "r")
        store.weights = _view_weights(photos, np.load(folder / "presence.npy"), counts, without)
        return store
    written.unlink(missing_ok=True)
    store = ViewStore(folder, sum(counts), n_maps, "w+")
    presence = np.zeros((len(photos), N_LABELS), bool)
    started, at = time.monotonic(), 0
    scrapbook = Scrapbook(photos, soft_targets)
    images: list[np.ndarray] = []
    hards: list[np.ndarray] = []
    softs: list[np.ndarray] = []

    def flush() -> None:
        nonlocal at
        if images:
            pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
            with torch.inference_mode():
                features = network.encode((pixels - 127) / 128)
            store.put(at, features, np.stack(hards), np.stack(softs))
            at += len(images)
            for held in (images, hards, softs):
                held.clear()

    for i, photo in enumerate(photos):
        image, mask = photo.image(), photo.mask()
        share = np.bincount(mask.ravel(), minlength=256)[:N_LABELS] / mask.size
        presence[i] = share > 0.01
        soft_map = soft_targets(photo)
        rng = np.random.default_rng([seed, i])
        for number, view in enumerate(random_views(mask.shape, mask, counts[i], rng)):
            shown = view.image(image)
            hard = view.sample(mask, HARD_STEP) if photo.human else np.full(_HARD_SHAPE, IGNORE, np.uint8)
            soft = _soft_view(soft_map, view.grid(mask.shape, SOFT_STEP))
            if number and rng.random() < PASTED_SHARE:
                shown, labels = scrapbook.paste(shown, _PASTED_INTO[photo.dataset], rng)
                hard, soft = _covered(hard, soft, labels, photo.human)
            images.append(shown)
            hards.append(hard)
            softs.append(soft)
            if len(images) == _ENCODE_BATCH:
                flush()
        if i % 200 == 199:
            say(f"  {i + 1}/{len(photos)} photographs encoded in {time.monotonic() - started:.0f} s")
    flush()
    np.save(folder / "presence.npy", presence)
    written.write_text(recipe)
    store.weights = _view_weights(photos, presence, counts, without)
    return store


def _covered(
    hard: np.ndarray, soft: np.ndarray, labels: np.ndarray, human: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Put the labels of what was pasted, uint8 [320, 320], over the targets of a view."""
    if human:
        fine = labels[HARD_STEP - 1 :: HARD_STEP, HARD_STEP - 1 :: HARD_STEP]
        hard = np.where(fine == IGNORE, hard, fine)
    coarse = labels[SOFT_STEP - 1 :: SOFT_STEP, SOFT_STEP - 1 :: SOFT_STEP]
    return hard, np.where(coarse == IGNORE, soft, one_hot(coarse))


def one_hot(mask: np.ndarray) -> np.ndarray:
    """Return a mask as probabilities, uint8 [L, H, W] in 1/255; ignored pixels hold zeros."""
    return (np.arange(N_LABELS)[:, None, None] == mask).astype(np.uint8) * 255


def _soft_view(soft: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Sample soft targets [L, h, w] on the view; cells outside of the photograph hold zeros."""
    source = torch.from_numpy(soft).float()[None]
    at = torch.from_numpy(grid)[None]
    cells = F.grid_sample(source, at, mode="bilinear", padding_mode="border", align_corners=False)
    inside = (at.abs() <= 1).all(-1)
    return (cells[0] * inside).round().to(torch.uint8).numpy()


# How many of a hundred views come from each set. The 55 human-masked COCO photographs are the only
# ones of cluttered rooms and streets, but too few to be seen much more often.
_SET_SHARE = {"distill_pseudo_voc": 0.66, "msrc21": 0.20, "voc_coco128": 0.14}


def _view_weights(
    photos: Sequence[Photo], presence: np.ndarray, counts: Sequence[int], without: Sequence[str]
) -> np.ndarray:
    """Return how often each view is drawn."""
    weights = _photo_weights(photos, presence)
    weights[[photo.dataset in without for photo in photos]] = 0
    return np.repeat(weights / weights.sum() / counts, counts)


def _photo_weights(photos: Sequence[Photo], presence: np.ndarray) -> np.ndarray:
    """Return how often each photograph is drawn: half of the draws favour those with rare classes."""
    rarity = (presence / np.sqrt(np.maximum(presence.sum(0), 1))).max(1)
    weights = np.zeros(len(photos))
    for dataset, share in _SET_SHARE.items():
        members = np.array([photo.dataset == dataset for photo in photos])
        if members.any():
            rare = rarity[members] / rarity[members].sum()
            weights[members] = share * (0.5 / members.sum() + 0.5 * rare)
    return weights / weights.sum()
