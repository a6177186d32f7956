"""The filter of a lattice where its features require a gradient: learnt widths of kernels, and images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from napari_crfasrnn.lattice import Lattice


def filter_by_features(
    values: Tensor,  # [N, V]
    features: Tensor,  # [N, d]
    lattice: Lattice,
    first_axis: int,
) -> Tensor:  # [N, V]
    """Return what a lattice makes of values, with gradients for them and for the features it was built of.

    Parameters
    ----------
    values
        To be filtered.
    features
        Those of ``lattice``, in its order of points.
    lattice
        What filters.
    first_axis
        Features before this axis get no gradient.

    Raises
    ------
    RuntimeError
        In a second backward pass: second derivatives are refused.
    """
    filtered: Tensor = _FeatureFilter.apply(values, features, lattice, first_axis)  # type: ignore[no-untyped-call]
    return filtered


class _FeatureFilter(torch.autograd.Function):
    """The filter as a differentiable function of its values and of the features.

    The lattice approximates out_i = sum_j k_ij v_j with k_ij = exp(-|f_i - f_j|^2 / 2). The derivative of
    that Gaussian, dk_ij / df_i = k_ij (f_j - f_i), is again made of Gaussian filters, of v and of v f:

        dE/df_i = g_i . (K(v f) - f K v)_i + v_i . (K'(g f) - f K' g)_i

    for the gradient g of the output. It is the derivative of the Gaussian, filtered by the same lattice, not
    that of the lattice's own approximation, which jumps where a point enters another simplex. Second
    derivatives are refused.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, features: Tensor, lattice: Lattice, first_axis: int) -> Tensor:
        filtered = lattice.filter(values.detach())
        ctx.save_for_backward(values, features, filtered)
        ctx.lattice, ctx.first_axis = lattice, first_axis
        return filtered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        values, features, filtered = ctx.saved_tensors
        with torch.no_grad():
            returned, wanted = _FeatureFilter._gradients(ctx, gradient, values, features, filtered)
        if torch.is_grad_enabled():  # somebody may want to differentiate these
            returned, wanted = _Last.apply(returned, wanted, gradient, values, features)  # type: ignore[no-untyped-call]
        return returned, wanted, None, None

    @staticmethod
    def _gradients(
        ctx: Any, gradient: Tensor, values: Tensor, features: Tensor, filtered: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        lattice: Lattice = ctx.lattice
        returned = lattice.filter(gradient, transpose=True)
        if not ctx.needs_input_grad[1]:
            return returned, None
        centred = features - features.mean(dim=0)  # smaller numbers to subtract from each other
        wanted = torch.zeros_like(features)
        for axis in range(ctx.first_axis, features.shape[1]):
            f = centred[:, axis : axis + 1]
            as_receiver = gradient * (lattice.filter(values * f) - f * filtered)
            as_sender = values * (lattice.filter(gradient * f, transpose=True) - f * returned)
            wanted[:, axis] = (as_receiver + as_sender).sum(dim=1)
        return returned, wanted


class _Last(torch.autograd.Function):
    """Gradients that cannot be differentiated once more.

    It is told what they depend on, so that whoever asks for a derivative by any of it is refused.
    torch's own `once_differentiable` is left out of what `torch.autograd.grad` looks at, which then gives
    wrong numbers.
    """

    @staticmethod
    def forward(
        ctx: Any, returned: Tensor, wanted: Tensor | None, *depends_on: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return returned.clone(), None if wanted is None else wanted.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            "second derivatives are not there where the widths of the kernels are learnt, or where the image "
            "requires a gradient: set image.requires_grad to False and trainable_thetas to False"
        )
