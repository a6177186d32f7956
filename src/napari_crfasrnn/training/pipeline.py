"""From a batch of windows to the logits that a stage's loss looks at, in 16 bits where that pays."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from napari_crfasrnn.config import Precision
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.training.history import Stage


class Pipeline(nn.Module):
    """What a stage runs: the network, the CRF behind it, or both.

    Parameters
    ----------
    model
        Its parts that do not learn in this stage are no parameters of this module.
    stage
        "fcn" leaves the CRF out, "crf" has no gradients for the network.
    half
        What the network computes in beside 32 bits, as `half_precision` returns it.
    """

    def __init__(self, model: SegmentationModel, stage: Stage, half: torch.dtype | None) -> None:
        super().__init__()
        # Registered is only what learns: data parallelism waits for the gradients of all the rest, too.
        self.network = model.network if stage != "crf" else None
        self.crf = model.crf if stage != "fcn" else None
        self._model = model
        self._stage = stage
        self._half = half

    def forward(self, images: Tensor) -> Tensor:  # [B, C, s, s] → [B, L, s, s]
        """Return logits of windows in 0..255."""
        frozen = torch.no_grad() if self._stage == "crf" else nullcontext()
        with frozen, torch.autocast(images.device.type, self._half, enabled=self._half is not None):
            logits = self._model.logits(images)
        logits = logits.float()
        if self.crf is None or not bool(torch.isfinite(logits).all()):
            return logits  # the loss, not finite either, says so
        refined: Tensor = self.crf(logits, self._model.crf_image(images))
        return refined


def half_precision(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Return the 16-bit type that the network computes in, or None for 32 bits."""
    if precision == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
