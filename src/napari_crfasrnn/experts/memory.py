"""Pixels that experts learnt from, kept in the model so that it can be taught again without their images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_crfasrnn.experts.features import GROUPS

_WIDTH = sum(GROUPS.values())
_LARGEST = float(torch.finfo(torch.float16).max)


class Memory(nn.Module):
    """Features and classes of some pixels.

    Parameters
    ----------
    n
        How many.

    Attributes
    ----------
    rows : Tensor
        [n, d] their features, all groups of them, rounded to 16 bits.
    column : Tensor
        [n] which column of the experts' judgements is right.
    is_foreign : Tensor
        [n] 1 where the pixel was learnt in another project than the last.
    """

    rows: Tensor
    column: Tensor
    is_foreign: Tensor

    def __init__(self, n: int = 0) -> None:
        super().__init__()
        stored = n > 0
        self.register_buffer("rows", torch.zeros(n, _WIDTH), persistent=stored)
        self.register_buffer("column", torch.zeros(n, dtype=torch.int32), persistent=stored)
        self.register_buffer("is_foreign", torch.zeros(n, dtype=torch.int32), persistent=stored)

    @classmethod
    def of(cls, rows: Tensor, column: Tensor, is_foreign: Tensor) -> Self:
        """Return a memory of pixels."""
        memory = cls(len(rows))
        memory.rows.copy_(rows.clamp(-_LARGEST, _LARGEST).half())
        memory.column.copy_(column)
        memory.is_foreign.copy_(is_foreign)
        return memory

    def select(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Memory:
        """Return some of the pixels."""
        index = torch.from_numpy(chosen)
        return Memory.of(*(each.cpu()[index] for each in (self.rows, self.column, self.is_foreign)))

    def with_origin(self, origin: Sequence[int | None]) -> Memory:
        """Return the pixels of classes that stay, where columns are classes."""
        place = {source: value for value, source in enumerate(origin) if source is not None}
        columns = self.column.cpu().numpy()
        kept = self.select(np.isin(columns, list(place)))
        moved = [place[value] for value in kept.column.tolist()]
        kept.column.copy_(torch.tensor(moved, dtype=torch.int32))
        return kept

    def __len__(self) -> int:
        return len(self.rows)
