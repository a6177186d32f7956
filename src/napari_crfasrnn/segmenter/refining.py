"""From labels that a person corrected to refined logits, on the part of a plane that it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.classes import ClassSpec, ignore_value, label_dtype
from napari_crfasrnn.crf import OnIteration, Potential
from napari_crfasrnn.edits import Box
from napari_crfasrnn.higher_order import Detection
from napari_crfasrnn.kernels import PreparedImage
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.progress import Cancel, stop_if

CONFIDENCE = 0.9  # probability of a label that differs from the network's opinion
MOST_EXTRA_FEATURES = 6  # with the channels and both places in the image that is all a lattice takes
_CLAMPED = 1e4  # logit of a held label: above what all messages add up to
_HALF_TRUST = 3.0  # held pixels around that contradict the network and halve its say


def unary_of_labels(
    logits: Tensor,  # [1, L, H, W]
    labels: NDArray[Any],  # [H, W]
) -> Tensor:  # [1, L, H, W]
    """Return logits that say what the labels say where these differ from the network's opinion."""
    n_labels = logits.shape[1]
    wanted = torch.from_numpy(labels.astype(np.int64)).to(logits.device)
    differs = (wanted < n_labels) & (wanted != logits[0].max(0).indices)
    unary = logits.clone()
    # softmax of these gives the label CONFIDENCE and shares the rest evenly among the others
    peak = math.log(CONFIDENCE / (1 - CONFIDENCE) * max(n_labels - 1, 1))
    rows, columns = differs.nonzero(as_tuple=True)
    unary[0, :, rows, columns] = 0.0
    unary[0, wanted[rows, columns], rows, columns] = peak
    return unary


def hold(
    unary: Tensor,  # [1, L, H, W]
    logits: Tensor,  # [1, L, H, W]
    labels: NDArray[Any],  # [H, W]
    held: NDArray[np.bool_],  # [H, W]
    prepared: PreparedImage,
) -> Tensor:  # [1, L, H, W]
    """Return logits that leave no doubt at the held pixels, and more of it where these contradict.

    A network that is wrong under a stroke is as wrong, and as sure, beside it: a stroke could spread
    nowhere. So what `unary` says fades at pixels whose place and colour are like those of held pixels
    that contradict the network's `logits`, unless others like them agree with it.
    """
    if not held.any():
        return unary
    rows, columns = (torch.from_numpy(part).to(unary.device) for part in held.nonzero())
    wanted = torch.from_numpy(labels[held].astype(np.int64)).to(unary.device)
    contradicts = logits[0][:, rows, columns].max(0).indices != wanted
    if contradicts.any():
        kinds = [contradicts] if contradicts.all() else [contradicts, ~contradicts]  # one is quicker summed
        marks = unary.new_zeros((1, len(kinds), *unary.shape[2:]))
        for plane, kind in zip(marks[0], kinds, strict=True):
            plane[rows, columns] = kind.to(unary.dtype)
        against, *agreeing = prepared.bilateral_sums(marks)[0]
        trust = _HALF_TRUST + sum(agreeing)
        unary = unary * (trust / (trust + against))
    else:
        unary = unary.clone()
    unary[0, :, rows, columns] = 0.0
    unary[0, wanted, rows, columns] = _CLAMPED
    return unary


def prepare_part(
    model: SegmentationModel,
    plane: Tensor,  # [1, c, H, W]
    window: Box,
    extra: Tensor | None = None,  # [1, E, H, W]
    cancel: Cancel | None = None,
) -> PreparedImage:
    """Build the kernels of a part of a plane, of which ``model.crf_image`` is given."""
    y0, x0, y1, x1 = window
    features = None if extra is None else extra[..., y0:y1, x0:x1]
    scale = model.crf_scale((plane.shape[-2], plane.shape[-1]))
    return model.crf.prepare(plane[..., y0:y1, x0:x1], features, scale=scale, on_step=stop_if(cancel))


def run_crf(
    model: SegmentationModel,
    unary: Tensor,  # [1, L, H, W]
    prepared: PreparedImage,
    on_iteration: OnIteration | None = None,
    n_iterations: int | None = None,
    potentials: Sequence[Potential] = (),
) -> Tensor:  # [1, L, H, W]
    """Return refined logits, as in prediction whatever mode the model is in."""
    with evaluating(model):
        refined: Tensor = model.crf(
            unary,
            prepared=prepared,
            on_iteration=on_iteration,
            n_iterations=n_iterations,
            potentials=potentials,
        )
    return refined


@contextmanager
def evaluating(model: SegmentationModel) -> Iterator[None]:
    """Switch dropout and gradients off for a while."""
    training = [module for module in (model.network, model.crf) if module.training]
    for module in training:
        module.eval()
    try:
        # Not inference_mode: what is kept for the next call would be of no use to training.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.train()


def check_given(given: Any, plane_shape: tuple[int, int], n_labels: int) -> NDArray[Any]:
    """Return labels in the label type of the class table, or logits in float32."""
    array = np.asarray(given)
    if array.dtype.kind == "f":
        expected: tuple[int, ...] = (n_labels, *plane_shape)
        if array.shape != expected:
            raise ValueError(f"logits must have shape [L, H, W] = {expected}, got {array.shape}")
        logits = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(logits).all():
            raise ValueError("logits must be finite, got NaN or infinity")
        return logits
    if array.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers (or logits floating point), got {array.dtype}")
    if array.shape != plane_shape:
        raise ValueError(f"labels must have shape [H, W] = {plane_shape}, got {array.shape}")
    dtype = label_dtype(n_labels)
    ignored = array == ignore_value(dtype)
    if array.dtype.itemsize > 1:
        ignored |= array == ignore_value(np.uint16)
    known = array[~ignored]
    if known.size and not 0 <= int(known.min()) <= int(known.max()) < n_labels:
        worst = int(known.min()) if int(known.min()) < 0 else int(known.max())
        raise ValueError(
            f"labels must be places in the class table, 0 to {n_labels - 1}, or {ignore_value(dtype)} for "
            f"unlabelled, got {worst}"
        )
    return np.where(ignored, ignore_value(dtype), array).astype(dtype)


def check_region(region: Sequence[int] | None, plane_shape: tuple[int, int]) -> Box:
    """Return a region as four integers; None is the whole plane."""
    if region is None:
        return (0, 0, *plane_shape)
    try:
        y0, x0, y1, x1 = (int(edge) for edge in region)
    except (TypeError, ValueError):
        raise ValueError(f"region must be four integers (y0, x0, y1, x1), got {region!r}") from None
    if not (0 <= y0 < y1 <= plane_shape[0] and 0 <= x0 < x1 <= plane_shape[1]):
        raise ValueError(
            f"region must lie within the plane of shape {plane_shape} and hold a pixel, "
            f"got {(y0, x0, y1, x1)}"
        )
    return y0, x0, y1, x1


def check_clamp(clamp: Any, plane_shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask of the plane; None is nowhere."""
    if clamp is None:
        return np.zeros(plane_shape, bool)
    held = np.asarray(clamp)
    if held.dtype != bool or held.shape != plane_shape:
        raise ValueError(
            f"clamp must be boolean of shape [H, W] = {plane_shape}, got {held.dtype} of shape {held.shape}"
        )
    return held


def check_extra_features(
    given: Any, shape: tuple[int, ...]
) -> NDArray[np.float32] | None:  # [E, *stack, H, W]
    """Return features as float32 with their own axis; None is none."""
    if given is None:
        return None
    array = np.asarray(given)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"extra_features must hold numbers, got {array.dtype}")
    if array.shape == shape:
        array = array[None]
    if array.shape[1:] != shape or not 1 <= len(array) <= MOST_EXTRA_FEATURES:
        raise ValueError(
            f"extra_features must have the shape of the image, {shape}, or that after an axis of up to "
            f"{MOST_EXTRA_FEATURES} features, got {array.shape}"
        )
    features = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(features).all():
        raise ValueError("extra_features must be finite, got NaN or infinity: fill the gaps first")
    return features


def check_detections(
    detections: Sequence[Detection], plane_shape: tuple[int, int], classes: tuple[ClassSpec, ...]
) -> list[Detection]:
    """Return detections whose labels are places in the class table."""
    place = {spec.name: number for number, spec in enumerate(classes)}
    checked = []
    for detection in detections:
        if not isinstance(detection, Detection):
            raise TypeError(f"detections must hold Detection objects, got {detection!r}: see Detection.box")
        if detection.mask.shape != plane_shape:
            raise ValueError(
                f"mask of a detection must have the shape of the plane, {plane_shape}, "
                f"got {detection.mask.shape}"
            )
        label = place.get(detection.label) if isinstance(detection.label, str) else detection.label
        if label is None or not 0 <= label < len(classes):
            raise ValueError(
                f"label of a detection must be a class of the model, {detection.label!r} is no class; "
                f"it has {', '.join(place)}"
            )
        checked.append(Detection(label, detection.score, detection.mask))
    return checked
