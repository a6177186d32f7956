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

from napari_crfasrnn.encoder import FEATURE_CHANNELS
from napari_crfasrnn.fcn import FcnLite
from starter_data import IGNORE, N_LABELS, VIEW, Photo, random_views

N_VIEWS = {"distill_pseudo_voc": 4, "msrc21": 3, "voc_coco128": 12}
SOFT_STEP = 8  # pixels of a view per cell of its soft targets, the network's finest stride
HARD_STEP = 4  # pixels of a view per cell of its hard targets

_ENCODE_BATCH = 4  # small enough for a processor's cache


@dataclass(frozen=True)
class Batch:
    """Some views: features, a hard target (255 = none) and a soft target (all zero = none)."""

    features: tuple[Tensor, Tensor, Tensor]  # [B, 40, 40, 40], [B, 112, 20, 20], [B, 320, 10, 10]
    hard: Tensor  # int64 [B, 80, 80]
    soft: Tensor  # float32 [B, L, 40, 40]


class ViewStore:
    """All views of the training photographs, in memory-mapped files of one folder."""

    def __init__(self, folder: Path, n_views: int, mode: str) -> None:
        sides = (VIEW // 8, VIEW // 16, VIEW // 32)
        shapes = {f"f{VIEW // s}": (c, s, s) for c, s in zip(FEATURE_CHANNELS, sides, strict=True)}
        kinds: dict[str, tuple[type, tuple[int, ...]]] = {k: (np.float16, s) for k, s in shapes.items()}
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
        for name, values in zip(("f8", "f16", "f32"), features, strict=True):
            self._maps[name][start:stop] = values.to(torch.float16).numpy()
        self._maps["hard"][start:stop] = hard
        self._maps["soft"][start:stop] = soft

    def draw(self, size: int, rng: np.random.Generator) -> Batch:
        """Draw a batch of views by their weights."""
        chosen = np.sort(rng.choice(len(self), size, p=self.weights))
        f8, f16, f32 = (torch.from_numpy(self._maps[k][chosen]).float() for k in ("f8", "f16", "f32"))
        return Batch(
            (f8, f16, f32),
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
    say: Callable[[str], None] = print,
) -> ViewStore:
    """Encode all views of ``photos``, or open them if ``folder`` holds them already."""
    counts = [n_views[photo.dataset] for photo in photos]
    recipe = json.dumps([seed, VIEW, [photo.key for photo in photos], counts, about])
    written = folder / "recipe.json"
    if written.exists() and written.read_text() == recipe:
        store = ViewStore(folder, sum(counts), "r")
        store.weights = np.load(folder / "weights.npy")
        return store
    written.unlink(missing_ok=True)
    store = ViewStore(folder, sum(counts), "w+")
    presence = np.zeros((len(photos), N_LABELS), bool)
    started, at = time.monotonic(), 0
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
        for view in random_views(mask.shape, mask, counts[i], rng):
            images.append(view.image(image))
            hard = view.sample(mask, HARD_STEP)
            hards.append(hard if photo.human else np.full_like(hard, IGNORE))
            softs.append(_soft_view(soft_map, view.grid(mask.shape, SOFT_STEP)))
            if len(images) == _ENCODE_BATCH:
                flush()
        if i % 200 == 199:
            say(f"  {i + 1}/{len(photos)} photographs encoded in {time.monotonic() - started:.0f} s")
    flush()
    store.weights = np.repeat(_photo_weights(photos, presence) / counts, counts)
    np.save(folder / "weights.npy", store.weights)
    written.write_text(recipe)
    return store


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
