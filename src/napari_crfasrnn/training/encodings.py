"""What the encoder makes of labelled planes, computed once in a round."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from napari_crfasrnn.network import Features, SegmentationModel
from napari_crfasrnn.plane_logits import PlaneLogits
from napari_crfasrnn.progress import Cancel
from napari_crfasrnn.training.planes import LabelledPlane

_MAX_BYTES = 1 << 29  # of features that are kept; those of further planes are computed each time


@dataclass(frozen=True, eq=False)
class Encoding:
    """A plane as the head of a network sees it.

    Attributes
    ----------
    features
        What the encoder makes of it.
    input_size
        Height and width of what the encoder read.
    """

    features: Features
    input_size: tuple[int, int]


class Encodings:
    """Encodings of planes, kept as long as the encoder stays as it is.

    Parameters
    ----------
    keep
        Whether it does stay so; a thawed one does not.
    """

    def __init__(self, *, keep: bool) -> None:
        self._left = _MAX_BYTES if keep else 0
        self._kept: dict[tuple[int, tuple[int, ...]], Encoding] = {}

    @torch.no_grad()
    def of(self, model: SegmentationModel, plane: LabelledPlane, cancel: Cancel | None) -> Encoding:
        """Return the encoding of a plane by the encoder of a model, the same one every time.

        Raises
        ------
        Cancelled
            When asked to stop.
        """
        place = (plane.item_id, plane.index)
        if place in self._kept:
            return self._kept[place]
        seen = model.preprocess(plane.image)
        size = (int(seen.shape[-2]), int(seen.shape[-1]))
        encoding = Encoding(model.network.encode(seen, cancel), size)
        n_bytes = sum(each.nbytes for each in encoding.features)
        if n_bytes <= self._left:
            self._left -= n_bytes
            self._kept[place] = encoding
        return encoding

    @torch.no_grad()
    def logits(self, model: SegmentationModel, plane: LabelledPlane, cancel: Cancel | None) -> PlaneLogits:
        """Return the logits of a plane by the network of a model, without a panel.

        Raises
        ------
        Cancelled
            When asked to stop.
        """
        encoding = self.of(model, plane, cancel)
        return model.network_logits(encoding.features, encoding.input_size, plane.size)
