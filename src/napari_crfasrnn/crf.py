"""The CRF-RNN layer: mean-field inference in a dense CRF as a differentiable module.

Zheng et al., "Conditional Random Fields as Recurrent Neural Networks", ICCV 2015. With unary logits
U and marginals Q = softmax(state), one mean-field iteration is

    S = K_spatial Q,  B = K_bilateral Q                      (message passing, normalised)
    state = U - compatibility (spatial_weights S + bilateral_weights B)

where the three matrices act on the label axis. The compatibility starts at -I, the Potts model up
to a constant that softmax does not see. The last softmax is left out: the layer returns logits.

Letters: B batch, C image channels, L labels, S the space axes (H W, or Z H W), N pixels or voxels.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from napari_crfasrnn.config import CrfConfig, WeightForm
from napari_crfasrnn.definition import FurtherTerms, OnIteration, Potential, define, iterate, kernels_of
from napari_crfasrnn.kernels import (
    PreparedImage,
    Widths,
    differentiable_image,
    groups_of,
    prepare_image,
    prepare_points,
)
from napari_crfasrnn.lattice import Backend
from napari_crfasrnn.mean_field import DifferentiableMeanField, MarginalDtype, MeanField
from napari_crfasrnn.progress import Progress, part_of
from napari_crfasrnn.tracing import not_traced

__all__ = ["CrfRnn", "OnIteration", "Potential"]


class CrfRnn(nn.Module):
    """Dense CRF with Gaussian kernels as a layer: logits and an image in, refined logits out.

    Parameters
    ----------
    n_labels
        L, at least 1.
    config
        Kernel widths, initial weights, iterations; see `CrfConfig`.

    Attributes
    ----------
    spatial_weights, bilateral_weights, compatibility
        Parameters ``[L, L]``.
    log_unary_scale, log_output_scale
        Scalar parameters: logarithms of the factors on the logits going in and coming out.
    spatial_offsets, bilateral_offsets, compatibility_offsets
        With untied iterations parameters ``[T, L, L]``, what each adds to the matrices above; else None.
    log_theta_alpha, log_theta_beta, log_theta_gamma
        Scalar parameters where the widths are trainable, else None.
    backend
        Which lattice computes, see `Lattice`; "auto" by default. The compiled ones compute in float32
        whatever the dtype of the logits, "reference" in float64 for float64 images.
    marginal_dtype
        How inference without gradients on the CPU stores marginals between iterations: "float32" by default,
        or "uint16", which is faster and rounds each by 8e-6 at most; `docs/lattice.md` says by how much and
        what that changes. Only of more than two labels and kernels normalised "after".
    """

    spatial_offsets: nn.Parameter | None
    bilateral_offsets: nn.Parameter | None
    compatibility_offsets: nn.Parameter | None
    log_theta_alpha: nn.Parameter | None
    log_theta_beta: nn.Parameter | None
    log_theta_gamma: nn.Parameter | None

    def __init__(self, n_labels: int, config: CrfConfig | None = None) -> None:
        super().__init__()
        _check_count("n_labels", n_labels)
        if n_labels < 1:
            raise ValueError(f"n_labels must be at least 1, got {n_labels}")
        if not isinstance(config, CrfConfig | None):
            raise TypeError(
                f"config must be a CrfConfig, got {config!r}: write CrfConfig(**config) for a dict"
            )
        self.config = CrfConfig() if config is None else config
        self.backend: Backend = "auto"
        self.marginal_dtype: MarginalDtype = "float32"
        eye = torch.eye(n_labels)
        self.spatial_weights = nn.Parameter(self.config.spatial_weight * eye)
        self.bilateral_weights = nn.Parameter(self.config.bilateral_weight * eye)
        self.compatibility = nn.Parameter(-eye)
        self.log_unary_scale = nn.Parameter(torch.tensor(self.config.unary_scale).log())
        self.log_output_scale = nn.Parameter(torch.tensor(self.config.output_scale).log())
        if self.config.compatibility_form == "potts":
            self.compatibility.requires_grad_(False)
        n_untied = self.config.untied_iterations
        for name in ("spatial_offsets", "bilateral_offsets", "compatibility_offsets"):
            is_used = n_untied > 0 and (name != "compatibility_offsets" or self.compatibility.requires_grad)
            offsets = nn.Parameter(torch.zeros(n_untied, n_labels, n_labels)) if is_used else None
            self.register_parameter(name, offsets)
        for name in ("theta_alpha", "theta_beta", "theta_gamma"):
            width = torch.tensor(getattr(self.config, name)).log()
            is_trainable = self.config.trainable_thetas
            self.register_parameter(f"log_{name}", nn.Parameter(width) if is_trainable else None)

    @property
    def n_labels(self) -> int:
        """L, the number of labels."""
        return self.compatibility.shape[0]

    def extra_repr(self) -> str:
        """Describe the layer in the module's printed form."""
        return (
            f"n_labels={self.n_labels}, normalization={self.config.normalization!r}, backend={self.backend!r}"
        )

    @property
    def settings(self) -> CrfConfig:
        """The configuration with the kernel widths as they are now, where these are learned."""
        if self.log_theta_alpha is None:
            return self.config
        names = ("theta_alpha", "theta_beta", "theta_gamma")
        now = {name: float(getattr(self, f"log_{name}").detach().exp()) for name in names}
        return self.config.model_copy(update=now)

    def maps(self, iteration: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return what takes the messages of the two kernels to what is subtracted, each ``[L, L]``.

        The compatibility joins the weights: one product per kernel and iteration instead of two.

        Parameters
        ----------
        iteration
            From 0; matters where iterations are untied.
        dtype
            What to compute in.
        """
        spatial, bilateral, compatibility = (
            self._matrix(name, iteration).to(dtype) for name in ("spatial", "bilateral", "compatibility")
        )
        return compatibility @ spatial, compatibility @ bilateral

    def _matrix(self, name: str, iteration: int) -> Tensor:
        """Return one of the three matrices as an iteration uses it."""
        is_weight = name != "compatibility"
        matrix: Tensor = getattr(self, f"{name}_weights" if is_weight else name)
        offsets: Tensor | None = getattr(self, f"{name}_offsets")
        if offsets is not None:
            matrix = matrix + offsets[min(iteration, len(offsets) - 1)]
        if is_weight:
            return _in_form(matrix, self.config.weight_form)
        is_potts = self.config.compatibility_form == "potts"
        return -torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device) if is_potts else matrix

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return the parameters as groups for an optimiser, each with its learning rate and its name.

        The rates are `learning_rate` times the multipliers of the configuration, which stand for the
        ``lr_mult`` of the original layer; what a configuration keeps constant is left out.
        """
        config = self.config
        thetas = (self.log_theta_alpha, self.log_theta_beta, self.log_theta_gamma)
        compatibility = (self.compatibility, self.compatibility_offsets)
        members: tuple[tuple[str, float, tuple[nn.Parameter | None, ...]], ...] = (
            ("spatial", config.spatial_multiplier, (self.spatial_weights, self.spatial_offsets)),
            ("bilateral", config.bilateral_multiplier, (self.bilateral_weights, self.bilateral_offsets)),
            ("compatibility", config.compatibility_multiplier, compatibility),
            ("scales", config.scale_multiplier, (self.log_unary_scale, self.log_output_scale)),
            ("thetas", config.theta_multiplier, thetas),
        )
        groups = []
        for name, multiplier, parameters in members:
            learned = [p for p in parameters if p is not None and p.requires_grad]
            if learned:
                groups.append({"name": name, "params": learned, "lr": multiplier * learning_rate})
        return groups

    @not_traced
    @torch.inference_mode(False)  # the kernels outlive this call, and training cannot use inference tensors
    @torch.no_grad()
    def prepare(
        self,
        image: Tensor,  # [B, C, *S]
        extra_features: Tensor | None = None,  # [B, E, *S]
        *,
        scale: float = 1.0,
        on_step: Progress | None = None,
    ) -> PreparedImage:
        """Build the kernels of a batch of images; they are constants, through which no gradient goes.

        Parameters
        ----------
        image
            ``[B, C, *S]`` of any real dtype in 0..255 intensity units, one to three space axes, any number
            of channels as long as C, E and the number of space axes add up to at most 16.
        extra_features
            ``[B, E, *S]``: what else tells pixels apart, such as depth or a second image, each already
            divided by the width that its differences are measured in. They join the bilateral kernel.
        scale
            What ``theta_alpha`` and ``theta_gamma`` are multiplied by, for an image that is so many times
            larger than what the network saw.
        on_step
            Called as ``on_step(done, total)`` every 50 ms at least while kernels are built on the CPU; to
            stop, raise in it: that exception comes out of this call.

        Raises
        ------
        TypeError
            For something that is no tensor, or a complex one.
        ValueError
            For another shape, an image without pixels, NaN or infinity, or values too large for the lattice.
        """
        return prepare_image(image, self.settings.at_scale(scale), self.backend, extra_features, on_step)

    def prepare_points(
        self,
        positions: Tensor,  # [N, S]
        channels: Tensor,  # [C, N]
        mass: Tensor,  # [N]
        extra_features: Tensor | None = None,  # [E, N]
        *,
        scale: float = 1.0,
    ) -> PreparedImage:
        """Build kernels over points, some of which stand for many pixels.

        Parameters
        ----------
        positions
            ``[N, S]`` in pixels, float32.
        channels
            ``[C, N]`` in 0..255 intensity units, float32.
        mass
            ``[N]``, how many pixels each point stands for, float32.
        extra_features, scale
            As `prepare` takes them, the features ``[E, N]``.

        Returns
        -------
        The kernels of an image of a single row: ``forward`` takes unaries ``[1, L, 1, N]`` with them.

        Raises
        ------
        TypeError, ValueError
            For features that the lattice does not take.
        """
        settings = self.settings.at_scale(scale)
        return prepare_points(positions, channels, mass, settings, self.backend, extra_features)

    @not_traced
    def forward(
        self,
        unary: Tensor,  # [B, L, *S]
        image: Tensor | None = None,  # [B, C, *S]
        *,
        prepared: PreparedImage | None = None,
        extra_features: Tensor | None = None,  # [B, E, *S]
        potentials: Sequence[Potential] = (),
        n_iterations: int | None = None,
        on_iteration: OnIteration | None = None,
    ) -> Tensor:  # [B, L, *S]
        """Refine logits so that labels follow the edges of the image.

        Parameters
        ----------
        unary
            ``[B, L, *S]`` logits, higher is likelier; finite.
        image
            ``[B, C, *S]`` in 0..255 units, or None when `prepared` is given.
        prepared
            What `prepare` returned for the image.
        extra_features
            As `prepare` takes them, together with `image`.
        potentials
            Further terms of the energy; such a CRF has no compiled inference.
        n_iterations
            None takes ``config.n_iterations`` in evaluation, ``config.n_iterations_train`` in training mode.
        on_iteration
            Called as ``on_iteration(done, total)`` after each iteration of each image, and in compiled
            inference also during long ones, with the numbers so far; to stop, raise in it: that exception
            comes out of this call. On a GPU, where all iterations are one submission, it is called when that
            is queued.

        Returns
        -------
        Tensor ``[B, L, *S]`` of the dtype of `unary`: refined logits, differentiable with respect to `unary`
        and all parameters. Where `image` is given and itself, `extra_features` or the kernel widths ask for
        gradients, they get those of the Gaussian that the lattice approximates, see ``docs/theory.md``; a
        `prepared` image is a constant.

        Raises
        ------
        TypeError, ValueError
            For input that does not fit; the message says which.
        """
        if (image is None) == (prepared is None):
            raise ValueError("give either image or prepared, exactly one of them")
        if extra_features is not None and image is None:
            raise ValueError("extra_features must come with image: a prepared image holds them already")
        if image is not None and not isinstance(image, Tensor):
            raise TypeError(f"image must be a torch tensor [B, C, *space], got {type(image).__name__}")
        if prepared is not None and not isinstance(prepared, PreparedImage):
            raise TypeError(f"prepared must be what prepare returned, got {type(prepared).__name__}")
        if prepared is None:
            assert image is not None
            _check_unary(unary, self.n_labels)
            if image.shape[:1] + image.shape[2:] != unary.shape[:1] + unary.shape[2:]:
                raise ValueError(
                    f"image and unary must have the same batch and space axes, "
                    f"got {tuple(image.shape)} and {tuple(unary.shape)}"
                )
            prepared = self._kernels(image, extra_features)
        else:
            _check_unary(unary, self.n_labels)
            expected = (prepared.n_images, self.n_labels, *prepared.space)
            if tuple(unary.shape) != expected:
                raise ValueError(
                    f"unary must have shape {expected} for this prepared image, got {tuple(unary.shape)}"
                )
        if n_iterations is None:
            n_iterations = self.config.n_iterations_train if self.training else self.config.n_iterations
        _check_count("n_iterations", n_iterations)
        if n_iterations < 1:
            raise ValueError(f"n_iterations must be at least 1, got {n_iterations}")
        # Half precision would lose the small differences that decide between labels.
        with torch.autocast(unary.device.type, enabled=False):
            logits = unary.to(prepared.dtype)
            needs_gradient = torch.is_grad_enabled() and (
                unary.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
            )
            is_plain = (
                not potentials
                and self.config.untied_iterations == 0
                and self.n_labels <= MeanField.MAX_LABELS
                and not _has_tangents(unary, *self.parameters())
            )
            before = _before_iterations(on_iteration, n_iterations * len(prepared.bilateral))
            training = prepared.training(before) if is_plain and needs_gradient else None
            inference = prepared.inference(before) if is_plain and not needs_gradient else None
            if training is not None:
                refined = self._trained_mean_field(logits, prepared, training, n_iterations, on_iteration)
            elif inference is not None:
                refined = self._fused_mean_field(logits, inference, n_iterations, on_iteration)
            else:
                refined = self._mean_field(logits, prepared, n_iterations, on_iteration, potentials)
        return refined.to(unary.dtype)

    def _kernels(self, image: Tensor, extra_features: Tensor | None) -> PreparedImage:
        """Build the kernels of a batch, differentiable where somebody asks for gradients."""
        thetas = (self.log_theta_alpha, self.log_theta_beta, self.log_theta_gamma)
        asking = [image, extra_features, *thetas]
        if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in asking)):
            return self.prepare(image, extra_features)
        constants = (self.config.theta_alpha, self.config.theta_beta, self.config.theta_gamma)
        widths = [
            torch.tensor(width, device=image.device) if learned is None else learned.exp().to(image.device)
            for learned, width in zip(thetas, constants, strict=True)
        ]
        return differentiable_image(
            image, Widths(*widths), self.config.normalization, self.backend, extra_features
        )

    @torch.no_grad()
    def _fused_mean_field(
        self,
        unary: Tensor,
        fields: tuple[MeanField, ...],
        n_iterations: int,
        on_iteration: OnIteration | None,
    ) -> Tensor:  # [B, L, *S]
        spatial_map, bilateral_map = self.maps()
        scales = torch.stack((self.log_unary_scale, self.log_output_scale)).exp()
        unary_scale, output_scale = scales.tolist()  # one wait for a GPU
        joint = len(unary) // len(fields)
        refined = [
            field.run(
                logits.flatten(2) if joint > 1 else logits[0].flatten(1),
                spatial_map=spatial_map,
                bilateral_map=bilateral_map,
                unary_scale=unary_scale,
                output_scale=output_scale,
                n_iterations=n_iterations,
                on_iteration=part_of(on_iteration, number, len(fields)),
                marginal_dtype=self.marginal_dtype,
            ).reshape(logits.shape)
            for number, (logits, field) in enumerate(zip(groups_of(joint, unary), fields, strict=True))
        ]
        return torch.cat(refined) if len(refined) > 1 else refined[0]

    def _trained_mean_field(
        self,
        unary: Tensor,
        prepared: PreparedImage,
        fields: tuple[DifferentiableMeanField, ...],
        n_iterations: int,
        on_iteration: OnIteration | None,
    ) -> Tensor:  # [B, L, *S]
        """Iterate in compiled code that has a compiled gradient."""
        spatial_map, bilateral_map = self.maps(dtype=prepared.dtype)
        log_unary_scale, log_output_scale = self._log_scales(prepared.dtype)
        images = zip(groups_of(1, unary), fields, kernels_of(prepared), strict=True)
        refined = [
            field.run(
                logits,
                spatial_map=spatial_map,
                bilateral_map=bilateral_map,
                log_unary_scale=log_unary_scale,
                log_output_scale=log_output_scale,
                n_iterations=n_iterations,
                on_iteration=part_of(on_iteration, number, len(fields)),
                definition=functools.partial(define, kernels, n_iterations),
            )
            for number, (logits, field, kernels) in enumerate(images)
        ]
        return torch.cat(refined) if len(refined) > 1 else refined[0]

    def _mean_field(
        self,
        unary: Tensor,
        prepared: PreparedImage,
        n_iterations: int,
        on_iteration: OnIteration | None = None,
        potentials: Sequence[Potential] = (),
    ) -> Tensor:  # [B, L, *S]
        """Iterate in torch: the definition, differentiable. The compiled paths must agree with it."""
        if not bool(torch.isfinite(unary.detach()).all()):
            raise ValueError("unary must be finite, got NaN or infinity")
        n_maps = min(n_iterations, max(1, self.config.untied_iterations))
        maps = [self.maps(iteration, prepared.dtype) for iteration in range(n_maps)]
        scales = self._log_scales(prepared.dtype)
        refined = []
        joint = prepared.images_per_kernel
        groups = groups_of(joint, unary)
        for number, (logits, kernels) in enumerate(zip(groups, kernels_of(prepared), strict=True)):
            images = range(number * joint, (number + 1) * joint)
            terms = FurtherTerms(potentials, images, kernels[2]) if potentials else None
            after_iteration = part_of(on_iteration, number, len(groups))
            refined.append(iterate(kernels, logits, maps, scales, n_iterations, after_iteration, terms))
        return torch.cat(refined)

    def _log_scales(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.log_unary_scale.to(dtype), self.log_output_scale.to(dtype)


def _before_iterations(on_iteration: OnIteration | None, total: int) -> OnIteration | None:
    """Return what work calls that comes before the first iteration."""
    return None if on_iteration is None else lambda _done, _total: on_iteration(0, total)


def _has_tangents(*tensors: Tensor) -> bool:
    """Return whether a forward-mode derivative is asked for, which has no compiled path."""
    duals = [forward_ad.unpack_dual(tensor) for tensor in tensors]  # type: ignore[no-untyped-call]
    return any(dual.tangent is not None for dual in duals)


def _in_form(matrix: Tensor, form: WeightForm) -> Tensor:
    """Return the part of a weight matrix ``[L, L]`` that counts."""
    if form == "full":
        return matrix
    diagonal = matrix.diagonal()
    return torch.diag(diagonal if form == "per_class" else diagonal.mean().expand(len(matrix)))


def _check_count(name: str, value: int) -> None:
    try:
        operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def _check_unary(unary: object, n_labels: int) -> None:
    if not isinstance(unary, Tensor):
        raise TypeError(f"unary must be a torch tensor [B, L, *space], got {type(unary).__name__}")
    if not unary.is_floating_point():
        raise TypeError(f"unary must be floating point logits, got {unary.dtype}")
    if unary.ndim < 3 or unary.shape[1] != n_labels:
        raise ValueError(f"unary must be [B, {n_labels}, *space], got shape {tuple(unary.shape)}")
