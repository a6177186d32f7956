"""What comes out of a segmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.classes import ClassSpec, label_dtype
from napari_crfasrnn.edits import Box, remap_labels

_BLOCK = 1 << 18  # logits turned into labels and entropy at a time, so that they stay in the cache


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The result for one plane or a whole stack. Its arrays are read-only."""

    labels: NDArray[Any]
    """``[*stack, H, W]``, uint8 up to 255 classes, else uint16: places in ``classes``; after
    `Segmenter.refine` with a region also the ignore value, where the given labels had it."""
    classes: tuple[ClassSpec, ...]
    before_crf: NDArray[Any] | None
    """Labels of the network alone, shaped as ``labels``; None where they are no different thing."""
    entropy: NDArray[np.float32]
    """Uncertainty of the final marginals, shaped as ``labels``: their entropy divided by log L, 0..1."""
    marginals: NDArray[np.float32] | None = None
    """``[L, *stack, H, W]``, only on request."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds for ``network``, ``crf`` (lattices included) and ``total``."""

    def __post_init__(self) -> None:
        for name in ("labels", "before_crf", "entropy", "marginals"):
            array = getattr(self, name)
            if array is not None:
                view = array.view()
                view.flags.writeable = False
                object.__setattr__(self, name, view)

    def remapped(self, new_values: Sequence[int | None], classes: tuple[ClassSpec, ...]) -> Segmentation:
        """Return it for another class table, without marginals.

        Parameters
        ----------
        new_values
            For each class its place in the other table, or None where its pixels become unlabelled.
        classes
            The other table.
        """
        before = self.before_crf
        return replace(
            self,
            labels=remap_labels(self.labels, new_values, len(classes)),
            classes=classes,
            before_crf=None if before is None else remap_labels(before, new_values, len(classes)),
            marginals=None,
        )

    def shares(self) -> tuple[float, ...]:
        """Return the share of all pixels that each class has, 0..1, in the order of ``classes``."""
        counts = np.bincount(self.labels.reshape(-1), minlength=len(self.classes))
        return tuple(float(count) / max(self.labels.size, 1) for count in counts[: len(self.classes)])


class ResultArrays:
    """The arrays of a segmentation while they are being filled, plane by plane."""

    def __init__(
        self,
        n_planes: int,
        plane_shape: tuple[int, int],
        classes: tuple[ClassSpec, ...],
        *,
        before_crf: bool,
        marginals: bool,
    ) -> None:
        shape = (n_planes, *plane_shape)
        self._classes = classes
        self._labels = np.empty(shape, label_dtype(len(classes)))
        self._before = np.empty_like(self._labels) if before_crf else None
        self._entropy = np.empty(shape, np.float32)
        self._marginals = np.empty((len(classes), *shape), np.float32) if marginals else None

    def write_before_crf(
        self,
        place: int,
        box: Box,
        logits: Tensor,  # [L, h, w]
    ) -> None:
        """Keep the labels of the network alone, of a part of a plane."""
        if self._before is not None:
            y0, x0, y1, x1 = box
            self._before[place, y0:y1, x0:x1] = logits.max(0).indices.cpu().numpy()

    def write(
        self,
        place: int,
        box: Box,
        logits: Tensor,  # [L, h, w]
    ) -> None:
        """Keep what final logits say of a part of a plane."""
        part = (place, slice(box[0], box[2]), slice(box[1], box[3]))
        marginals = None if self._marginals is None else self._marginals[:, *part]
        read_out(logits, self._labels[part], self._entropy[part], marginals)

    def entropy(self, place: int) -> NDArray[np.float32]:  # [H, W]
        """Return the entropy of a plane."""
        entropy: NDArray[np.float32] = self._entropy[place]
        return entropy

    def finish(self, stack_shape: tuple[int, ...], timings: dict[str, float]) -> Segmentation:
        """Return the result; the planes get the shape of the stack."""
        shape = (*stack_shape, *self._labels.shape[1:])
        marginals = self._marginals
        return Segmentation(
            labels=self._labels.reshape(shape),
            classes=self._classes,
            before_crf=None if self._before is None else self._before.reshape(shape),
            entropy=self._entropy.reshape(shape),
            marginals=None if marginals is None else marginals.reshape(len(self._classes), *shape),
            timings=timings,
        )


def read_out(
    logits: Tensor,  # [L, H, W]
    labels: NDArray[Any],  # [H, W], written
    entropy: NDArray[np.float32],  # [H, W], written
    marginals: NDArray[np.float32] | None,  # [L, H, W], written
) -> None:
    """Write what the logits of a plane say into arrays, some rows at a time."""
    n_labels, height, width = logits.shape
    rows = max(1, _BLOCK // (n_labels * width))
    for start in range(0, height, rows):
        part = slice(start, start + rows)
        block = logits[:, part]
        log_q = block.log_softmax(0)
        q = log_q.exp()
        labels[part] = block.max(0).indices.cpu().numpy()  # a quarter of the time of argmax
        uncertainty = -(q * log_q).sum(0) / math.log(max(n_labels, 2))
        entropy[part] = uncertainty.clamp(0, 1).cpu().numpy()
        if marginals is not None:
            marginals[:, part] = q.cpu().numpy()
