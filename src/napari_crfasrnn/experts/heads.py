"""Heads of `FcnFine` as experts: they see what a place is like around, which single pixels do not tell.

Taught on a few whole masks, such a head knows membranes, synapses and the shapes of nuclei better than all
experts for single pixels. It reads the maps that those read, so it costs little beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.encoder import FINE_BLOCKS
from napari_crfasrnn.experts.features import STRIDES, FeatureMaps, Layer
from napari_crfasrnn.experts.sampling import Lay, locate_cells, values_at
from napari_crfasrnn.fcn import Features
from napari_crfasrnn.fcn_fine import FcnFine
from napari_crfasrnn.progress import Cancel, raise_if_cancelled

NEVER = -20.0
"""Logit of a class that an expert was never taught."""
_GROUPS = tuple(STRIDES[block] for block in FINE_BLOCKS)


class Head(FcnFine):
    """What `FcnFine` has beside its encoder.

    Parameters
    ----------
    n_labels
        Number of classes L.
    """

    def __init__(self, n_labels: int) -> None:
        super().__init__(n_labels, has_encoder=False)

    @torch.no_grad()
    def judge(self, maps: FeatureMaps, cancel: Cancel | None = None) -> tuple[Layer, Layer]:
        """Return the logits of a whole image, at stride 2: as it is, and as its mirror image shows it.

        The marginals of the two, averaged, are the head's: they err in different places. ``cancel`` is asked
        between them; `Cancelled` comes out where it says so.
        """
        seen = tuple(maps.layer(group).values.movedim(-1, 0)[None] for group in _GROUPS)
        mirrored = self._scores(maps.mirrored).flip(-1)
        raise_if_cancelled(cancel)
        return (
            Layer(self._scores(seen).movedim(0, -1).contiguous(), Lay.of_encoder(maps.grid, self.stride)),
            Layer(mirrored.movedim(0, -1).contiguous(), Lay.of_mirrored(maps.grid, self.stride)),
        )

    def _scores(self, features: Features) -> Tensor:  # [L, h/2, w/2]
        device = self.context.weight.device
        return self.decode_coarse(tuple(each.to(device) for each in features))[0].cpu()

    def marginals(
        self, maps: FeatureMaps, y: NDArray[np.integer], x: NDArray[np.integer], cancel: Cancel | None = None
    ) -> Tensor:
        """Return what the head thinks of some pixels of an image, [N, L]; ``cancel`` as in `judge`."""
        total = torch.zeros(len(y), self.n_labels)
        for layer in self.judge(maps, cancel):
            positions = locate_cells(maps.grid, y, x, layer.lay)
            total += values_at(layer.values.movedim(-1, 0), positions).softmax(1)
        return total / 2

    @torch.no_grad()
    def with_origin(self, origin: Sequence[int | None]) -> Head:
        """Return a copy for another class table: each new class is an old one, or one that nobody knows."""
        kept = [source for source in origin if source is not None]
        places = [value for value, source in enumerate(origin) if source is not None]
        with torch.random.fork_rng(devices=[]):  # what is drawn is written over
            grown = Head(len(origin)).to(self.context.weight.device)
        state = self.state_dict()
        own = grown.state_dict()
        for name, value in state.items():
            if not name.startswith("scores."):
                own[name].copy_(value)
        for number, (new, old) in enumerate(zip(grown.score_layers, self.score_layers, strict=True)):
            assert new.bias is not None
            assert old.bias is not None
            new.weight.zero_()
            new.bias.fill_(NEVER if number == 0 else 0.0)
            new.weight[places] = old.weight[kept]
            new.bias[places] = old.bias[kept]
        return grown.eval()
