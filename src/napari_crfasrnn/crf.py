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

from collections.abc import Callable

import torch
from torch import Tensor, nn

from napari_crfasrnn.config import CrfConfig
from napari_crfasrnn.kernels import PreparedImage, groups_of, prepare_image
from napari_crfasrnn.lattice import Backend, MeanField

# What follows the progress of the mean field: (done, total) iterations.
OnIteration = Callable[[int, int], None]


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
    backend
        Which lattice computes, see `Lattice`; "auto" by default. The compiled ones compute in float32
        whatever the dtype of the logits, "reference" in float64 for float64 images.
    """

    def __init__(self, n_labels: int, config: CrfConfig | None = None) -> None:
        super().__init__()
        if n_labels < 1:
            raise ValueError(f"n_labels must be at least 1, got {n_labels}")
        self.config = CrfConfig() if config is None else config
        self.backend: Backend = "auto"
        eye = torch.eye(n_labels)
        self.spatial_weights = nn.Parameter(self.config.spatial_weight * eye)
        self.bilateral_weights = nn.Parameter(self.config.bilateral_weight * eye)
        self.compatibility = nn.Parameter(-eye)
        self.log_unary_scale = nn.Parameter(torch.tensor(self.config.unary_scale).log())
        self.log_output_scale = nn.Parameter(torch.tensor(self.config.output_scale).log())

    @property
    def n_labels(self) -> int:
        """L, the number of labels."""
        return self.compatibility.shape[0]

    def extra_repr(self) -> str:
        """Describe the layer in the module's printed form."""
        return (
            f"n_labels={self.n_labels}, normalization={self.config.normalization!r}, backend={self.backend!r}"
        )

    @torch.inference_mode(False)  # the kernels outlive this call, and training cannot use inference tensors
    @torch.no_grad()
    def prepare(
        self,
        image: Tensor,  # [B, C, *S]
    ) -> PreparedImage:
        """Build the kernels of a batch of images.

        Parameters
        ----------
        image
            ``[B, C, *S]`` of any real dtype in 0..255 intensity units, one to three space axes, any number
            of channels as long as C plus the number of space axes is at most 16.

        Raises
        ------
        TypeError
            For something that is no tensor, or a complex one.
        ValueError
            For another shape, an image without pixels, NaN or infinity, or values too large for the lattice.
        """
        return prepare_image(image, self.config, self.backend)

    def forward(
        self,
        unary: Tensor,  # [B, L, *S]
        image: Tensor | None = None,  # [B, C, *S]
        *,
        prepared: PreparedImage | None = None,
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
        n_iterations
            None takes ``config.n_iterations`` in evaluation, ``config.n_iterations_train`` in training mode.
        on_iteration
            Called as ``on_iteration(done, total)`` after each iteration of each image; to stop, raise in it:
            that exception comes out of this call. On a GPU, where all iterations are one submission, it is
            called when that is queued.

        Returns
        -------
        Tensor ``[B, L, *S]`` of the dtype of `unary`: refined logits, differentiable with respect to `unary`
        and all parameters. (The image and the kernel widths are constants.)

        Raises
        ------
        TypeError, ValueError
            For input that does not fit; the message says which.
        """
        if (image is None) == (prepared is None):
            raise ValueError("give either image or prepared, exactly one of them")
        if prepared is None:
            assert image is not None
            _check_unary(unary, self.n_labels)
            if image.shape[:1] + image.shape[2:] != unary.shape[:1] + unary.shape[2:]:
                raise ValueError(
                    f"image and unary must have the same batch and space axes, "
                    f"got {tuple(image.shape)} and {tuple(unary.shape)}"
                )
            prepared = self.prepare(image)
        else:
            _check_unary(unary, self.n_labels)
            expected = (prepared.n_images, self.n_labels, *prepared.space)
            if tuple(unary.shape) != expected:
                raise ValueError(
                    f"unary must have shape {expected} for this prepared image, got {tuple(unary.shape)}"
                )
        if n_iterations is None:
            n_iterations = self.config.n_iterations_train if self.training else self.config.n_iterations
        if n_iterations < 1:
            raise ValueError(f"n_iterations must be at least 1, got {n_iterations}")
        # Half precision would lose the small differences that decide between labels.
        with torch.autocast(unary.device.type, enabled=False):
            logits = unary.to(prepared.dtype)
            needs_gradient = torch.is_grad_enabled() and (
                unary.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
            )
            if needs_gradient or prepared.fused is None or self.n_labels > MeanField.MAX_LABELS:
                refined = self._mean_field(logits, prepared, n_iterations, on_iteration)
            else:
                refined = self._fused_mean_field(logits, prepared.fused, n_iterations, on_iteration)
        return refined.to(unary.dtype)

    @torch.no_grad()
    def _fused_mean_field(
        self,
        unary: Tensor,
        fields: tuple[MeanField, ...],
        n_iterations: int,
        on_iteration: OnIteration | None,
    ) -> Tensor:  # [B, L, *S]
        spatial_map = self.compatibility @ self.spatial_weights
        bilateral_map = self.compatibility @ self.bilateral_weights
        unary_scale, output_scale = self.log_unary_scale.exp().item(), self.log_output_scale.exp().item()
        joint = len(unary) // len(fields)
        refined = [
            field.run(
                logits.flatten(2) if joint > 1 else logits[0].flatten(1),
                spatial_map=spatial_map,
                bilateral_map=bilateral_map,
                unary_scale=unary_scale,
                output_scale=output_scale,
                n_iterations=n_iterations,
                on_iteration=_part_of(on_iteration, number, len(fields)),
            ).reshape(logits.shape)
            for number, (logits, field) in enumerate(zip(groups_of(joint, unary), fields, strict=True))
        ]
        return torch.cat(refined) if len(refined) > 1 else refined[0]

    def _mean_field(
        self,
        unary: Tensor,
        prepared: PreparedImage,
        n_iterations: int,
        on_iteration: OnIteration | None = None,
    ) -> Tensor:  # [B, L, *S]
        """Iterate in torch: the definition, differentiable. The fused path must agree with it."""
        if not bool(torch.isfinite(unary.detach()).all()):
            raise ValueError("unary must be finite, got NaN or infinity")
        dtype = prepared.dtype
        compatibility = self.compatibility.to(dtype)
        # The compatibility joins the weights: one product per kernel and iteration instead of two.
        spatial_map = (compatibility @ self.spatial_weights.to(dtype)).T
        bilateral_map = (compatibility @ self.bilateral_weights.to(dtype)).T
        unary_scale = self.log_unary_scale.to(dtype).exp()
        output_scale = self.log_output_scale.to(dtype).exp()
        refined = []
        joint = prepared.images_per_kernel
        groups = groups_of(joint, unary)
        orders = prepared.pixel_of or (None,) * len(groups)
        for number, (logits, spatial, bilateral, order) in enumerate(
            zip(groups, prepared.spatial, prepared.bilateral, orders, strict=True)
        ):
            after_iteration = _part_of(on_iteration, number, len(groups))
            # [N, L]: the values of a pixel side by side, the images one behind the other.
            scaled = unary_scale * logits.flatten(2).transpose(1, 2).flatten(0, 1)
            if order is not None:
                order = order.to(scaled.device)
                scaled = scaled[order]
            state = scaled
            for iteration in range(n_iterations):
                marginals = state.softmax(dim=1)
                message = spatial.apply(marginals) @ spatial_map
                message = message + bilateral.apply(marginals) @ bilateral_map
                state = scaled - message
                if after_iteration is not None:
                    after_iteration(iteration + 1, n_iterations)
            if order is not None:
                state = torch.empty_like(state).index_copy(0, order, state)
            state = (output_scale * state).reshape(joint, -1, self.n_labels)
            refined.append(state.transpose(1, 2).reshape(logits.shape))
        return torch.cat(refined)


def _part_of(on_iteration: OnIteration | None, number: int, n_parts: int) -> OnIteration | None:
    """Return what a part of the work calls: it counts its own iterations, the caller those of all parts."""
    if on_iteration is None or n_parts == 1:
        return on_iteration
    return lambda done, total: on_iteration(number * total + done, n_parts * total)


def _check_unary(unary: object, n_labels: int) -> None:
    if not isinstance(unary, Tensor):
        raise TypeError(f"unary must be a torch tensor [B, L, *space], got {type(unary).__name__}")
    if not unary.is_floating_point():
        raise TypeError(f"unary must be floating point logits, got {unary.dtype}")
    if unary.ndim < 3 or unary.shape[1] != n_labels:
        raise ValueError(f"unary must be [B, {n_labels}, *space], got shape {tuple(unary.shape)}")
