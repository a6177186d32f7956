"""The compiled mean field: without gradients, and as a differentiable function for training on the CPU.

The forward run of the latter keeps the marginals of every iteration, and its backward run is native, too.
What has no compiled gradient (second derivatives) goes through the definition, which the caller hands over.

Letters: L labels, S the space axes, N pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn._ext import _lattice, cuda
from napari_crfasrnn.lattice import Lattice, as_array, as_order
from napari_crfasrnn.progress import let_signals_through

# What multiplies the values going into and coming out of a filter, each [N] float32.
Factors = tuple[Tensor | None, Tensor | None]

# Takes logits, both maps and the logarithms of both scales to refined logits, in torch.
Definition = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

# How marginals are stored between iterations: as they are, or as shares of 65535.
MarginalDtype = Literal["float32", "uint16"]

_Native = TypeVar("_Native")


class MeanField:
    """Mean-field inference in a dense CRF with two kernels, compiled, without gradients.

    Computes what `CrfRnn` defines, in one pass over the points per iteration. `CrfRnn` calls it when no
    gradient is asked for.

    Parameters
    ----------
    spatial, bilateral
        Lattices of the compiled backend around the same N points.
    spatial_factors, bilateral_factors
        What multiplies the values going into and coming out of each filter, each ``[N]`` float32, or None.
    pixel_of
        Which column of `run`'s arrays belongs to each point, int32 ``[N]``, as `order_pixels` gives it; None:
        they are in order. Only for lattices on the CPU.
    space
        Size of the space axes, of which `pixel_of` is an order.
    averages
        Whether the factors make every row of both kernels sum to 1.
    on_step
        On the CPU called with (0, 1) about every 50 ms while factors and order of a large image are taken
        over; what it raises ends that.
    """

    MAX_LABELS = 64
    """More labels than this are left to the differentiable path."""

    def __init__(
        self,
        spatial: Lattice,
        bilateral: Lattice,
        spatial_factors: Factors,
        bilateral_factors: Factors,
        *,
        pixel_of: Tensor | None = None,
        space: Sequence[int] = (),
        averages: bool = False,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        self._native: Any
        self._on_cuda = bilateral.backend == "cuda"
        if self._on_cuda:
            factors = _factors_by_name(spatial_factors, bilateral_factors)
            self._native = cuda.CudaMeanField(spatial._native, bilateral._native, **factors)
        else:
            self._native = _compiled(
                _lattice.MeanField,
                spatial,
                bilateral,
                spatial_factors,
                bilateral_factors,
                pixel_of=pixel_of,
                space=space,
                averages=averages,
                on_step=on_step,
            )

    def run(
        self,
        unary: Tensor,  # [L, N], or [B, L, N / B] for lattices of B groups
        *,
        spatial_map: Tensor,  # [L, L]
        bilateral_map: Tensor,  # [L, L]
        unary_scale: float,
        output_scale: float,
        n_iterations: int,
        on_iteration: Callable[[int, int], None] | None = None,
        marginal_dtype: MarginalDtype = "float32",
    ) -> Tensor:  # like unary
        """Return refined logits, float32; the maps take a kernel's message to what is subtracted.

        `on_iteration` is called with (done, total) after each iteration, and about every 50 ms during a long
        one; what it raises ends the run. A GPU gets all iterations as one submission: there it is called
        once, when that is queued. On a GPU, with one or two labels, and where a kernel does not average,
        marginals are float32 in any case.

        Raises
        ------
        ValueError
            For NaN or infinity in `unary`, and another `marginal_dtype` than "float32" or "uint16".
        """
        if marginal_dtype not in ("float32", "uint16"):
            raise ValueError(f'marginal_dtype must be "float32" or "uint16", got {marginal_dtype!r}')
        if self._on_cuda:
            refined = self._run_on_cuda(
                unary,
                spatial=spatial_map,
                bilateral=bilateral_map,
                unary_scale=unary_scale,
                output_scale=output_scale,
                n_iterations=n_iterations,
            )
            if on_iteration is not None:
                on_iteration(n_iterations, n_iterations)
            return refined
        out = self._native.run(
            as_array(unary),
            spatial=as_array(spatial_map),
            bilateral=as_array(bilateral_map),
            unary_scale=unary_scale,
            output_scale=output_scale,
            n_iterations=n_iterations,
            on_iteration=on_iteration or let_signals_through,
            in_16_bits=marginal_dtype == "uint16",
        )
        return torch.from_numpy(out).to(unary.device)

    def _run_on_cuda(self, unary: Tensor, **arguments: Any) -> Tensor:
        # The one wait of the host, before the iterations: the compiled CPU path refuses these, too.
        if not is_finite(unary):
            raise ValueError("unary must be finite, got NaN or infinity")
        on_device = unary.detach().to(self._native.device, torch.float32)
        images = on_device if unary.ndim == 3 else on_device[None]
        refined: Tensor = self._native.run(images, **arguments)
        return refined.reshape(unary.shape).to(unary.device)


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
    on_step
        Called with (0, 1) about every 50 ms while factors and order of a large image are taken over; what it
        raises ends that.
    """

    def __init__(
        self,
        spatial: Lattice,
        bilateral: Lattice,
        spatial_factors: Factors,
        bilateral_factors: Factors,
        *,
        pixel_of: Tensor | None = None,
        space: Sequence[int] = (),
        averages: bool = False,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        self._native = _compiled(
            _lattice.MeanFieldTraining,
            spatial,
            bilateral,
            spatial_factors,
            bilateral_factors,
            pixel_of=pixel_of,
            space=space,
            averages=averages,
            on_step=on_step,
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


def is_finite(values: Tensor) -> bool:
    """Return whether there is neither NaN nor infinity, in one pass and with one wait for a GPU."""
    # Both ends are NaN when any value is; torch.isfinite takes several passes and an array of flags.
    return values.numel() == 0 or bool(torch.isfinite(torch.stack(values.detach().aminmax())).all())


def _compiled(
    kind: Callable[..., _Native],
    spatial: Lattice,
    bilateral: Lattice,
    spatial_factors: Factors,
    bilateral_factors: Factors,
    *,
    pixel_of: Tensor | None,
    space: Sequence[int],
    averages: bool,
    on_step: Callable[[int, int], None] | None,
) -> _Native:
    """Return a mean field on the CPU, of a kind of the extension; the parameters are those of `MeanField`."""
    factors = _factors_by_name(spatial_factors, bilateral_factors)
    return kind(
        spatial._native,
        bilateral._native,
        **{name: None if factor is None else as_array(factor) for name, factor in factors.items()},
        pixel_of=None if pixel_of is None else as_order(pixel_of),
        space=list(space),
        averages=averages,
        on_step=on_step,
    )


def _factors_by_name(spatial: Factors, bilateral: Factors) -> dict[str, Tensor | None]:
    names = ("spatial_before", "spatial_after", "bilateral_before", "bilateral_after")
    return dict(zip(names, (*spatial, *bilateral), strict=True))


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
            spatial=as_array(spatial_map),
            bilateral=as_array(bilateral_map),
            unary_scale=log_unary_scale.exp().item(),
            output_scale=log_output_scale.exp().item(),
            n_iterations=work.n_iterations,
            with_vertices=for_maps,
            on_iteration=work.on_iteration or let_signals_through,
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
                as_array(trace),
                _rows(gradient),
                spatial=as_array(spatial_map),
                bilateral=as_array(bilateral_map),
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


def _rows(image: Tensor) -> NDArray[np.float32]:  # [1, L, *S] to [L, N]
    return as_array(image[0].flatten(1))
