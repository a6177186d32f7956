"""What is known of the plane that is worked on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.crf import Potential
from napari_crfasrnn.edits import Box
from napari_crfasrnn.frames import FramedImage
from napari_crfasrnn.higher_order import Detection
from napari_crfasrnn.imaging import ImageSource
from napari_crfasrnn.kernels import PreparedImage
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.plane_logits import PlaneLogits
from napari_crfasrnn.progress import Cancel, raise_if_cancelled, stop_if
from napari_crfasrnn.segmenter.refining import evaluating, prepare_part
from napari_crfasrnn.segmenter.result import read_out
from napari_crfasrnn.segmenter.steps import Steps
from napari_crfasrnn.segmenter.votes import StrokeVotes

_BLOCK_ROWS = 256  # of a plane whose logits are read out


class Plane:
    """One plane of an image, with what a model made of it so far.

    Whatever is asked for is computed once; a cancel in between loses nothing that was there.

    Parameters
    ----------
    model
        What looks at it.
    source, index
        The image, and which plane of it.
    extra
        ``[1, E, H, W]``, further features for the CRF in their widths.
    """

    def __init__(
        self, model: SegmentationModel, source: ImageSource, index: tuple[int, ...], extra: Tensor | None
    ) -> None:
        self.source, self.index, self.extra = source, index, extra
        self.size = source.plane_shape
        self.image = torch.from_numpy(source.plane(index))[None].to(model.device)  # [1, C, H, W], 0..255
        self.framed: tuple[FramedImage, Tensor] | None = (
            None  # in a demo's frame, with logits [1, L, 500, 500]
        )
        self.entropy: NDArray[np.float32] | None = None  # [H, W], of the last result
        self._model = model
        self._seen: Tensor | None = None  # [1, c, H, W], as the CRF sees it
        self._logits: PlaneLogits | None = None
        self._whole: PreparedImage | None = None
        self._part: tuple[Box, PreparedImage] | None = None
        self._superpixels: Tensor | None = None  # [1, K, H, W]
        self._votes: StrokeVotes | None = None

    def is_of(self, source: ImageSource, index: tuple[int, ...]) -> bool:
        """Return whether it is that plane of that image."""
        return self.source is source and self.index == index

    def logits(self, cancel: Cancel | None, steps: Steps | None = None) -> PlaneLogits:
        """Return what the network says of the plane; a step is done for each part that experts judge."""
        if self._logits is None:
            model = self._model
            with evaluating(model):
                framed = model.framed(self.image)
                if framed is None:
                    on_part = None if steps is None else steps.done
                    self._logits = model.plane_logits(self.image, cancel, on_part)
                else:
                    in_frame = model.network(model.framed_input(framed))
                    self.framed = (framed, in_frame)
                    self._logits = PlaneLogits(framed.restore(in_frame), self.size)
        return self._logits

    def votes(self, cancel: Cancel | None) -> StrokeVotes | None:
        """Return what strokes on the plane say of all else; None of a large plane, or of other networks."""
        if self._votes is None and StrokeVotes.takes(self._model, self.size):
            self._votes = StrokeVotes(self._model, self.image, self.logits(cancel), cancel)
        return self._votes

    def prepare(self, window: Box, cancel: Cancel | None, *, keep: bool = True) -> PreparedImage:
        """Return the kernels of the plane or of a part of it, from the last time if they still fit.

        Those of a part are kept if ``keep`` says so, else none are afterwards.
        """
        is_whole = window == (0, 0, *self.size)
        if is_whole and self._whole is not None:
            return self._whole
        if self._part is not None and self._part[0] == window:
            return self._part[1]
        self._part = None  # its memory is needed now
        if self._seen is None:
            self._seen = self._model.crf_image(self.image)
        prepared = prepare_part(self._model, self._seen, window, self.extra, cancel)
        if is_whole:
            self._whole = prepared
        elif keep:
            self._part = (window, prepared)
        return prepared

    def prepare_frame(self, cancel: Cancel | None) -> PreparedImage:
        """Return the kernels of the plane in the frame of a demo."""
        assert self.framed is not None
        return self._model.crf.prepare(self._model.framed_input(self.framed[0]), on_step=stop_if(cancel))

    def potentials(self, window: Box, superpixels: bool, detections: Sequence[Detection]) -> list[Potential]:
        """Return the further terms of the energy of the plane or of a part of it.

        The plane's superpixels are cut once, those of a part each time; of detections only what lies in the
        part is looked at.
        """
        higher_order = self._model.higher_order
        y0, x0, y1, x1 = window
        if window == (0, 0, *self.size):
            if superpixels and self._superpixels is None:
                self._superpixels = higher_order.cut(self.image)
            cuts = self._superpixels
        else:
            cuts = higher_order.cut(self.image[..., y0:y1, x0:x1]) if superpixels else None
            parts = [replace(each, mask=each.mask[y0:y1, x0:x1]) for each in detections]
            detections = [each for each in parts if each.mask.any()]
        return higher_order.potentials(cuts if superpixels else None, [detections])

    def known_entropy(self, logits: PlaneLogits, cancel: Cancel | None) -> NDArray[np.float32]:  # [H, W]
        """Return the entropy of the last result, else that of some logits; a new array."""
        if self.entropy is not None:
            return self.entropy.copy()
        entropy = np.empty(self.size, np.float32)
        for start in range(0, self.size[0], _BLOCK_ROWS):
            raise_if_cancelled(cancel)
            part = entropy[start : start + _BLOCK_ROWS]
            block = logits.within((start, 0, start + len(part), self.size[1]))[0]
            read_out(block, np.empty(part.shape, np.uint16), part, None)
        return entropy
