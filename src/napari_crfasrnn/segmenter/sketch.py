"""The neighbourhood of a stroke as points: each pixel near it, farther off one for each square of pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn.edits import Box
from napari_crfasrnn.kernels import PreparedImage
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.plane_logits import PlaneLogits

SQUARE = 4  # pixels; a divisor of the grid that windows lie on


@dataclass(frozen=True, eq=False)
class Sketch:
    """Points around a stroke, and the kernels over them.

    Arrays of points are images of a single row: ``[..., 1, N]``, first the pixels of the window, row by row.
    """

    window: Box
    rows: Tensor  # int64 [N]
    columns: Tensor  # int64 [N]
    prepared: PreparedImage

    @classmethod
    def draw(
        cls,
        model: SegmentationModel,
        plane: Tensor,  # [1, c, H, W]
        window: Box,
        surroundings: Box,
        extra: Tensor | None = None,  # [1, E, H, W]
    ) -> Sketch:
        """Take the pixels of a window and, in its surroundings, the middle of every square."""
        (y0, x0, y1, x1), (top, left, bottom, right) = window, surroundings
        near = torch.cartesian_prod(torch.arange(y0, y1), torch.arange(x0, x1))
        far = torch.cartesian_prod(torch.arange(top, bottom, SQUARE), torch.arange(left, right, SQUARE))
        outside = (far[:, 0] < y0) | (far[:, 0] >= y1) | (far[:, 1] < x0) | (far[:, 1] >= x1)
        far = far[outside]
        sizes = (torch.tensor([bottom, right]) - far).clamp(max=SQUARE)  # smaller at the border of the plane
        mass = torch.cat([torch.ones(len(near)), sizes.prod(dim=1).to(torch.float32)])
        points = torch.cat([near, far + sizes // 2])
        rows, columns = (places.to(plane.device) for places in points.unbind(1))
        channels = plane[0][:, rows, columns]
        features = None if extra is None else extra[0][:, rows, columns]
        positions = torch.stack([columns, rows], dim=1).to(plane)
        scale = model.crf_scale((plane.shape[-2], plane.shape[-1]))
        prepared = model.crf.prepare_points(positions, channels, mass.to(plane.device), features, scale=scale)
        return cls(window, rows, columns, prepared)

    def gather(self, logits: PlaneLogits) -> Tensor:  # [1, L, 1, N]
        """Return the logits of the plane at the points."""
        return logits.at(self.rows, self.columns)[None, :, None]

    def gather_strokes(
        self,
        strokes: NDArray[np.unsignedinteger],  # [h, w], of the window
        around: NDArray[np.unsignedinteger] | None,  # [H, W], of the plane; None: nothing is painted there
        nothing: int,
    ) -> NDArray[np.unsignedinteger]:  # [1, N]
        """Return the strokes at the points."""
        taken = np.full((1, len(self.rows)), nothing, strokes.dtype)
        taken[0, : strokes.size] = strokes.ravel()
        if around is not None:
            taken[0, strokes.size :] = around[
                self.rows[strokes.size :].cpu().numpy(), self.columns[strokes.size :].cpu().numpy()
            ]
        return taken

    def in_window(
        self,
        values: Tensor,  # [1, V, 1, N]
    ) -> Tensor:  # [1, V, h, w]
        """Return the values of the pixels of the window."""
        y0, x0, y1, x1 = self.window
        shape = (y1 - y0, x1 - x0)
        return values[:, :, 0, : shape[0] * shape[1]].reshape(*values.shape[:2], *shape)
