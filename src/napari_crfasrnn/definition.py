"""The mean field in torch: the definition of what a CRF-RNN computes, with further potentials.

It takes any kernels, has all derivatives, and the compiled paths must agree with it.

Letters: L labels, S the space axes (H W, or Z H W), N pixels or voxels, J the images of one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from napari_crfasrnn.kernels import Kernel, PreparedImage

# What follows the progress of the mean field: (done, total) iterations.
OnIteration = Callable[[int, int], None]

# The spatial and the bilateral kernel, and the pixel of each of their points (None: in order).
Kernels = tuple[Kernel, Kernel, Tensor | None]


class Potential(Protocol):
    """A further term of the energy of a batch of images; `higher_order` has two kinds.

    A mean-field iteration asks each for its message. What a potential carries from iteration to
    iteration, such as the marginals of variables of its own, is its state, which it is handed back.
    """

    def begin(self, image: int) -> Any:
        """Return the state before the first iteration on an image of the batch."""

    def support(
        self,
        image: int,
        marginals: Tensor,  # [N, L]
        state: Any,
    ) -> tuple[Tensor, Any]:  # [N, L]
        """Return what is added to the logits of the pixels, and the state after this iteration."""


class FurtherTerms:
    """The potentials of some images of a batch, with their states."""

    def __init__(self, potentials: Sequence[Potential], images: range, order: Tensor | None) -> None:
        self._images = images
        self._order = order
        self._states = [
            (potential, image, potential.begin(image)) for image in images for potential in potentials
        ]

    def support(
        self,
        marginals: Tensor,  # [n N, L], the points of the images one behind the other
    ) -> Tensor:  # [n N, L]
        """Return what all potentials add to the logits, and go on to their next states."""
        if self._order is not None:
            marginals = torch.empty_like(marginals).index_copy(0, self._order, marginals)
        supports = list(torch.zeros_like(marginals).tensor_split(len(self._images)))
        parts = marginals.tensor_split(len(self._images))
        for number, (potential, image, state) in enumerate(self._states):
            place = image - self._images.start
            support, state = potential.support(image, parts[place], state)
            self._states[number] = (potential, image, state)
            supports[place] = supports[place] + support
        total = torch.cat(supports)
        return total if self._order is None else total[self._order]


def kernels_of(prepared: PreparedImage) -> list[Kernels]:
    """Return the kernels of a prepared image, with orders as torch indexes."""
    pixel_of = prepared.pixel_of or (None,) * len(prepared.bilateral)
    # index_copy takes no other integers
    orders = [None if order is None else order.to(torch.int64) for order in pixel_of]
    return list(zip(prepared.spatial, prepared.bilateral, orders, strict=True))


def iterate(
    kernels: Kernels,
    logits: Tensor,  # [J, L, *S], the images of one kernel
    maps: Sequence[tuple[Tensor, Tensor]],  # [L, L]; the last serves all iterations that have none
    log_scales: tuple[Tensor, Tensor],
    n_iterations: int,
    on_iteration: OnIteration | None = None,
    terms: FurtherTerms | None = None,
) -> Tensor:  # [J, L, *S]
    """Run the mean field on the images of one kernel."""
    spatial, bilateral, order = kernels
    unary_scale, output_scale = (scale.exp() for scale in log_scales)
    # [N, L]: the values of a pixel side by side, the images one behind the other.
    scaled = unary_scale * logits.flatten(2).transpose(1, 2).flatten(0, 1)
    if order is not None:
        order = order.to(scaled.device)
        scaled = scaled[order]
    state = scaled
    for iteration in range(n_iterations):
        marginals = state.softmax(dim=1)
        spatial_map, bilateral_map = maps[min(iteration, len(maps) - 1)]
        message = spatial.apply(marginals) @ spatial_map.T
        message = message + bilateral.apply(marginals) @ bilateral_map.T
        state = scaled - message
        if terms is not None:
            state = state + terms.support(marginals)
        if on_iteration is not None:
            on_iteration(iteration + 1, n_iterations)
    if order is not None:
        state = torch.empty_like(state).index_copy(0, order, state)
    state = (output_scale * state).reshape(len(logits), -1, logits.shape[1])
    return state.transpose(1, 2).reshape(logits.shape)


def define(
    kernels: Kernels,
    n_iterations: int,
    logits: Tensor,
    spatial_map: Tensor,
    bilateral_map: Tensor,
    log_unary_scale: Tensor,
    log_output_scale: Tensor,
) -> Tensor:
    """Run the mean field as a function of tensors alone, as a compiled one takes its definition."""
    maps = [(spatial_map, bilateral_map)]
    return iterate(kernels, logits, maps, (log_unary_scale, log_output_scale), n_iterations)
