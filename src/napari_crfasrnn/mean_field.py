"""The compiled mean field as a differentiable function: what training runs on the CPU.

The forward run keeps the marginals of every iteration, and the backward run is native, too. Whatever
has no compiled gradient (second derivatives) goes through the definition, which the caller hands over.

Letters: L labels, S the space axes, N pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn._ext import _lattice
from napari_crfasrnn.lattice import Lattice, as_order

# Takes logits, both maps and the logarithms of both scales to refined logits, in torch.
Definition = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class DifferentiableMeanField:
    """Mean-field inference in a dense CRF with two kernels, compiled, with gradients.

    Parameters
    ----------
    spatial, bilateral
        Lattices of the backend "cpu" around the same N points.
    spatial_factors, bilateral_factors
        What multiplies the values going into and coming out of each filter, each ``[N]`` float32, or None.
    pixel_of
        Which pixel each point is, int32 ``[N]``, as `order_pixels` gives it; None: they are in order.
    space
        Size of the space axes, of which `pixel_of` is an order.
    averages
        Whether the factors make every row of both kernels sum to 1.
    """

    def __init__(
        self,
        spatial: Lattice,
        bilateral: Lattice,
        spatial_factors: tuple[Tensor | None, Tensor | None],
        bilateral_factors: tuple[Tensor | None, Tensor | None],
        *,
        pixel_of: Tensor | None = None,
        space: Sequence[int] = (),
        averages: bool = False,
    ) -> None:
        factors: dict[str, Any] = {}
        for name, pair in (("spatial", spatial_factors), ("bilateral", bilateral_factors)):
            for place, factor in zip(("before", "after"), pair, strict=True):
                factors[f"{name}_{place}"] = None if factor is None else factor.numpy()
        order = None if pixel_of is None else as_order(pixel_of)
        self._native = _lattice.MeanFieldTraining(
            spatial._native,
            bilateral._native,
            **factors,
            pixel_of=order,
            space=list(space),
            averages=averages,
        )

    def run(
        self,
        unary: Tensor,  # [1, L, *S]
        *,
        spatial_map: Tensor,  # [L, L]
        bilateral_map: Tensor,  # [L, L]
        log_unary_scale: Tensor,
        log_output_scale: Tensor,
        n_iterations: int,
        on_iteration: Callable[[int, int], None] | None,
        definition: Definition,
    ) -> Tensor:  # [1, L, *S]
        """Return refined logits, float32, differentiable with respect to all five tensors.

        Each iteration keeps, until the backward pass, 4 bytes for every label (their number rounded up to
        1, 4 or a multiple of 8) of every pixel and, when a map needs a gradient, of every vertex of both
        lattices. Gradients are the same bits for every number of threads. `definition` computes the same in
        torch: second derivatives go through it.

        Raises
        ------
        ValueError
            For NaN or infinity in `unary`, or more than `MeanField.MAX_LABELS` labels.
        """
        work = _Work(self._native, n_iterations, on_iteration, definition)
        return _Iterations.apply(  # type: ignore[no-any-return, no-untyped-call]
            unary, spatial_map, bilateral_map, log_unary_scale, log_output_scale, work
        )


@dataclass(frozen=True)
class _Work:
    native: _lattice.MeanFieldTraining
    n_iterations: int
    on_iteration: Callable[[int, int], None] | None
    definition: Definition


class _Iterations(torch.autograd.Function):
    """All iterations as one function of logits, matrices and scales."""

    @staticmethod
    def forward(
        ctx: Any,
        unary: Tensor,
        spatial_map: Tensor,
        bilateral_map: Tensor,
        log_unary_scale: Tensor,
        log_output_scale: Tensor,
        work: _Work,
    ) -> Tensor:
        for_maps = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        out, trace = work.native.forward(
            _rows(unary),
            spatial=_array(spatial_map),
            bilateral=_array(bilateral_map),
            unary_scale=log_unary_scale.exp().item(),
            output_scale=log_output_scale.exp().item(),
            n_iterations=work.n_iterations,
            with_vertices=for_maps,
            on_iteration=work.on_iteration,
        )
        refined = torch.from_numpy(out).reshape(unary.shape).to(unary.device)
        ctx.work = work
        ctx.save_for_backward(
            unary,
            spatial_map,
            bilateral_map,
            log_unary_scale,
            log_output_scale,
            refined if ctx.needs_input_grad[4] else None,
            torch.from_numpy(trace) if any(ctx.needs_input_grad[:4]) else None,
        )
        return refined

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, work, needs = gradients[0], ctx.work, ctx.needs_input_grad
        *inputs, refined, trace = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants derivatives of what comes out of here
            return *_defined_gradients(work.definition, inputs, needs, gradient), None
        unary, spatial_map, bilateral_map, log_unary_scale, log_output_scale = inputs
        for_unary = needs[0] or needs[3]
        of_unary = of_spatial = of_bilateral = None
        if trace is not None:
            of_unary, of_spatial, of_bilateral = work.native.backward(
                _array(trace),
                _rows(gradient),
                spatial=_array(spatial_map),
                bilateral=_array(bilateral_map),
                unary_scale=log_unary_scale.exp().item(),
                output_scale=log_output_scale.exp().item(),
                for_unary=for_unary,
                for_spatial=needs[1],
                for_bilateral=needs[2],
            )
        # Logits come in as exp(log_scale) * unary and go out times another such factor.
        of_unary_scale = _lattice.dot(of_unary, _rows(unary)) if needs[3] and of_unary is not None else None
        of_output_scale = _lattice.dot(_rows(gradient), _rows(refined)) if needs[4] else None
        return (
            torch.from_numpy(of_unary).reshape(unary.shape).to(unary.device)
            if needs[0] and of_unary is not None
            else None,
            None if of_spatial is None else torch.from_numpy(of_spatial).to(spatial_map),
            None if of_bilateral is None else torch.from_numpy(of_bilateral).to(bilateral_map),
            None if of_unary_scale is None else torch.full_like(log_unary_scale, of_unary_scale),
            None if of_output_scale is None else torch.full_like(log_output_scale, of_output_scale),
            None,
        )


def _defined_gradients(
    definition: Definition, inputs: list[Tensor], needs: tuple[bool, ...], gradient: Tensor
) -> list[Tensor | None]:
    """Return the gradients of the definition, differentiable themselves."""
    # Half precision would lose the small differences that decide between labels.
    with torch.autocast(gradient.device.type, enabled=False):
        logits, spatial_map, bilateral_map, log_unary_scale, log_output_scale = inputs
        refined = definition(logits, spatial_map, bilateral_map, log_unary_scale, log_output_scale)
        wanted = [one for one, is_needed in zip(inputs, needs, strict=False) if is_needed]
        found = iter(torch.autograd.grad(refined, wanted, gradient, create_graph=True))
    return [next(found) if is_needed else None for is_needed in needs[: len(inputs)]]


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().cpu().to(torch.float32).numpy())


def _rows(image: Tensor) -> NDArray[np.float32]:  # [1, L, *S] to [L, N]
    return _array(image[0].flatten(1))
