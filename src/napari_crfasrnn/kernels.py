"""The Gaussian kernels of images: features, lattices, normalisation.

They depend on the image and on the widths of the kernels, not on what a CRF learns beside these, and
are built once to be used in every mean-field iteration and every backward pass.

Letters: B batch, C image channels, L labels, S the space axes (H W, or Z H W), N pixels or voxels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from napari_crfasrnn.config import CrfConfig, Normalization
from napari_crfasrnn.feature_filter import filter_by_features
from napari_crfasrnn.lattice import (
    Backend,
    Lattice,
    choose_backend,
    order_pixels,
)
from napari_crfasrnn.mean_field import DifferentiableMeanField, MeanField, is_finite
from napari_crfasrnn.progress import Progress, part_of

# Spatial lattices depend on the image's size only and are kept for the next image; larger ones
# would hold too much memory (about 75 bytes a pixel).
_LARGEST_KEPT = 1 << 20

# A GPU takes a batch as one lattice up to this many pixels, image by image beyond.
_LARGEST_JOINT = 1 << 24

_Field = TypeVar("_Field")


@dataclass(frozen=True)
class Kernel:
    """One Gaussian kernel over the pixels of an image, normalised by its row sums."""

    lattice: Lattice
    before: Tensor | None  # [N, 1], multiplies what goes in
    after: Tensor | None  # [N, 1], multiplies what comes out
    features: Tensor | None = None  # [N, d] where they are differentiated, else None
    first_axis: int = 0  # of the features that are

    @classmethod
    def build(
        cls,
        features: Tensor,  # [N, d]
        normalization: Normalization,
        backend: Backend,
        n_groups: int = 1,
        *,
        differentiable_from: int | None = None,
    ) -> Kernel:
        """Build the kernel of so many images, one behind the other.

        From the axis `differentiable_from` on, the features get gradients; None: none does.
        """
        lattice = Lattice(features.detach(), backend=backend, n_groups=n_groups)
        wanted = features if features.requires_grad and differentiable_from is not None else None
        kernel = cls(lattice, None, None, wanted, differentiable_from or 0)
        if normalization == "none":
            return kernel
        ones = torch.ones_like(features[:, :1])
        return kernel.normalized(kernel.filter(ones), normalization)

    def normalized(
        self,
        row_sums: Tensor,  # [N, 1]
        normalization: Normalization,
    ) -> Kernel:
        """Return this kernel with the factors that normalise it (other than "none")."""
        if normalization == "symmetric":
            root = row_sums.rsqrt()
            return dataclasses.replace(self, before=root, after=root)
        inverse = 1.0 / row_sums
        before, after = (inverse, None) if normalization == "before" else (None, inverse)
        return dataclasses.replace(self, before=before, after=after)

    def filter(
        self,
        values: Tensor,  # [N, V]
    ) -> Tensor:  # [N, V]
        """Return what the lattice makes of values, without normalisation."""
        if self.features is None:
            return self.lattice.filter(values)
        return filter_by_features(values, self.features, self.lattice, self.first_axis)

    def apply(
        self,
        marginals: Tensor,  # [N, L]
    ) -> Tensor:  # [N, L]
        """Pass messages: return the filtered and normalised marginals."""
        values = marginals if self.before is None else marginals * self.before
        message = self.filter(values)
        return message if self.after is None else message * self.after


@dataclass(frozen=True)
class PreparedImage:
    """The kernels of a batch of images: built once by `CrfRnn.prepare`, used as often as you like.

    They depend on the image and on the widths of the kernels, not on the weights.
    """

    space: tuple[int, ...]
    """Size of the space axes of the images."""
    dtype: torch.dtype
    """What the mean field computes in: float32, or float64 for the reference backend and float64 images."""
    device: torch.device
    spatial: tuple[Kernel, ...]
    bilateral: tuple[Kernel, ...]
    """One for each image of the batch, or a single one for all; as many spatial ones."""
    images_per_kernel: int = 1
    """How many images, one behind the other, a kernel is for: 1, or B where a GPU takes them as one."""
    pixel_of: tuple[Tensor, ...] | None = None
    """For each bilateral kernel the pixel at each of its points, int32 ``[N]``; None: they are in order."""
    mass: Tensor | None = None
    """How many pixels each point stands for, ``[N]``; None: one."""
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def n_images(self) -> int:
        """B, the size of the batch."""
        return len(self.bilateral) * self.images_per_kernel

    @property
    def backend(self) -> str:
        """The lattice backend in use."""
        return self.bilateral[0].lattice.backend

    @property
    def fused(self) -> tuple[MeanField, ...] | None:
        """The compiled inference of each bilateral kernel, or None where there is none."""
        return self.inference()

    @property
    def fused_training(self) -> tuple[DifferentiableMeanField, ...] | None:
        """The compiled training of each bilateral kernel, or None where there is none."""
        return self.training()

    def inference(self, on_step: Progress | None = None) -> tuple[MeanField, ...] | None:
        """Return `fused`, which the first call makes; for a large image that calls `on_step` every 50 ms."""
        if self.backend == "reference" or self.is_differentiable:
            return None
        return self._mean_fields(MeanField, on_step)

    def training(self, on_step: Progress | None = None) -> tuple[DifferentiableMeanField, ...] | None:
        """Return `fused_training`, as `inference` does `fused`."""
        if self.backend != "cpu" or self.is_differentiable:
            return None
        return self._mean_fields(DifferentiableMeanField, on_step)

    def _mean_fields(self, kind: Callable[..., _Field], on_step: Progress | None) -> tuple[_Field, ...]:
        kept: tuple[_Field, ...] | None = self._made.get(kind)
        if kept is not None:
            return kept
        pixel_of = self.pixel_of or (None,) * len(self.bilateral)
        fields = tuple(
            kind(
                spatial.lattice,
                bilateral.lattice,
                (_flat(spatial.before), _flat(spatial.after)),
                (_flat(bilateral.before), _flat(bilateral.after)),
                pixel_of=order,
                space=self.space,
                averages=self.averages,
                on_step=on_step,
            )
            for spatial, bilateral, order in zip(self.spatial, self.bilateral, pixel_of, strict=True)
        )
        self._made[kind] = fields
        return fields

    def bilateral_sums(
        self,
        values: Tensor,  # [B, V, *S]
    ) -> Tensor:  # [B, V, *S]
        """Return what the bilateral kernel sums up around each pixel, not normalised.

        With values 1 at some pixels and 0 elsewhere: how many of those pixels are near in place and colour.
        """
        sums = []
        groups = groups_of(self.images_per_kernel, values.to(self.dtype))
        orders = self.pixel_of or (None,) * len(groups)
        for group, kernel, order in zip(groups, self.bilateral, orders, strict=True):
            flat = group.flatten(2).transpose(1, 2).flatten(0, 1)  # [N, V]
            if self.mass is not None:
                flat = flat * self.mass[:, None]
            if order is not None:
                order = order.to(flat.device, torch.int64)  # all that index_copy takes
                flat = flat[order]
            filtered = kernel.lattice.filter(flat.contiguous())
            if order is not None:
                filtered = torch.empty_like(filtered).index_copy(0, order, filtered)
            filtered = filtered.reshape(len(group), -1, values.shape[1]).transpose(1, 2)
            sums.append(filtered.reshape(group.shape))
        return torch.cat(sums)

    @property
    def is_differentiable(self) -> bool:
        """Whether gradients go to the image or to the widths of the kernels."""
        return any(kernel.features is not None for kernel in (*self.spatial, *self.bilateral))

    @property
    def averages(self) -> bool:
        """Whether the rows of the kernels sum to 1, so that messages are averages of marginals."""
        return all(kernel.before is None and kernel.after is not None for kernel in self.spatial)


class Widths(NamedTuple):
    """The three widths as tensors, for kernels that are differentiated with respect to them."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor


def prepare_image(
    image: Tensor,  # [B, C, *S]
    config: CrfConfig,
    backend: Backend,
    extra_features: Tensor | None = None,  # [B, E, *S]
    on_step: Progress | None = None,
) -> PreparedImage:
    """Build the kernels of a batch of images; see `CrfRnn.prepare`."""
    image, extra_features = _checked(image, extra_features, backend)
    if extra_features is not None:  # channels whose width is 1
        image = torch.cat([image, extra_features * config.theta_beta], dim=1)
    space = tuple(image.shape[2:])
    if choose_backend(backend, image.device) == "cpu":
        return _prepare_ordered(image, space, config, backend, on_step)
    joint = _n_joint(image, backend)
    key = (space, config.theta_gamma, config.normalization, backend, image.dtype, image.device, joint)
    n_points = image[0, 0].numel() * joint
    if n_points <= _LARGEST_KEPT:
        # What one stream has queued, another would have to wait for: each has its own.
        stream = torch.cuda.current_stream(image.device).cuda_stream if image.is_cuda else 0
        spatial = _kept_spatial_kernel(stream, *key)
    else:
        spatial = _spatial_kernel(*key)
    position = _positions(space, image.dtype, image.device) / config.theta_alpha
    bilateral = [
        Kernel.build(
            torch.cat([position.repeat(joint, 1), _by_pixel(images) / config.theta_beta], dim=1),
            config.normalization,
            backend,
            joint,
        )
        for images in groups_of(joint, image)
    ]
    spatials = (spatial,) * len(bilateral)
    return PreparedImage(space, image.dtype, image.device, spatials, tuple(bilateral), joint)


def prepare_points(
    positions: Tensor,  # [N, S]
    channels: Tensor,  # [C, N]
    mass: Tensor,  # [N]
    config: CrfConfig,
    backend: Backend,
    extra_features: Tensor | None = None,  # [E, N]
) -> PreparedImage:
    """Build the kernels of points that stand for so many pixels each; see `CrfRnn.prepare_points`."""
    parts = [positions / config.theta_alpha, channels.T / config.theta_beta]
    if extra_features is not None:
        parts.append(extra_features.T)
    kernels = []
    for features in (positions / config.theta_gamma, torch.cat(parts, dim=1)):
        kernel = Kernel(Lattice(features.contiguous(), backend=backend), None, None)
        if config.normalization != "none":
            kernel = kernel.normalized(kernel.filter(mass[:, None]), config.normalization)
        before = mass[:, None] if kernel.before is None else mass[:, None] * kernel.before
        kernels.append(dataclasses.replace(kernel, before=before))
    spatial, bilateral = kernels
    space = (1, len(mass))
    return PreparedImage(space, positions.dtype, positions.device, (spatial,), (bilateral,), mass=mass)


def differentiable_image(
    image: Tensor,  # [B, C, *S]
    widths: Widths,
    normalization: Normalization,
    backend: Backend,
    extra_features: Tensor | None = None,  # [B, E, *S]
) -> PreparedImage:
    """Build kernels through which gradients go to the image, the further features and the widths."""
    image, extra_features = _checked(image, extra_features, backend)
    space = tuple(image.shape[2:])
    joint = _n_joint(image, backend)
    alpha, beta, gamma = (width.to(image.dtype) for width in widths)
    position = _positions(space, image.dtype, image.device).repeat(joint, 1)
    spatial = Kernel.build(position / gamma, normalization, backend, joint, differentiable_from=0)
    bilateral = []
    groups = groups_of(joint, image)
    extras: Sequence[Tensor | None] = (
        (None,) * len(groups) if extra_features is None else groups_of(joint, extra_features)
    )
    for images, extra in zip(groups, extras, strict=True):
        parts = [position / alpha, _by_pixel(images) / beta]
        parts += [] if extra is None else [_by_pixel(extra)]
        first = 0 if alpha.requires_grad else len(space)
        features = torch.cat(parts, dim=1)
        bilateral.append(Kernel.build(features, normalization, backend, joint, differentiable_from=first))
    spatials = (spatial,) * len(bilateral)
    return PreparedImage(space, image.dtype, image.device, spatials, tuple(bilateral), joint)


def _prepare_ordered(
    image: Tensor,
    space: tuple[int, ...],
    config: CrfConfig,
    backend: Backend,
    on_step: Progress | None,
) -> PreparedImage:
    """Build kernels over the pixels in an order that suits the cache of a processor."""
    spatial: list[Kernel] = []
    bilateral: list[Kernel] = []
    orders: list[Tensor] = []
    is_normalized = config.normalization != "none"
    for number, planes in enumerate(image.cpu().flatten(2)):

        def share(first: int, n_own: int, number: int = number) -> Progress | None:
            """Return the progress of a part of this image, in twentieths."""
            return part_of(on_step, 20 * number + first, 20 * len(image), n_own)

        # A step of four widths is about the distance of neighbouring lattice vertices.
        order = order_pixels(planes, space, colour_step=4.0 * config.theta_beta, on_step=share(0, 1))
        near = Lattice.of_pixels(
            planes[:0],
            space,
            order,
            position_width=config.theta_gamma,
            on_step=share(1, 3),
        )
        alike = Lattice.of_pixels(
            planes,
            space,
            order,
            position_width=config.theta_alpha,
            colour_width=config.theta_beta,
            on_step=share(4, 13),
        )
        for kernels, lattice, first, n_own in ((spatial, near, 17, 1), (bilateral, alike, 18, 2)):
            kernel = Kernel(lattice, None, None)
            if is_normalized:
                row_sums = lattice.row_sums(on_step=share(first, n_own))
                kernel = kernel.normalized(row_sums, config.normalization)
            kernels.append(kernel)
        orders.append(order)
        if on_step is not None:
            on_step(number + 1, len(image))
    return PreparedImage(space, image.dtype, image.device, tuple(spatial), tuple(bilateral), 1, tuple(orders))


def _n_joint(image: Tensor, backend: Backend) -> int:
    """Return how many images of a batch one kernel takes."""
    n_pixels = image[0, 0].numel() * len(image)
    is_joint = n_pixels <= _LARGEST_JOINT and choose_backend(backend, image.device) == "cuda"
    return len(image) if is_joint else 1


def _by_pixel(images: Tensor) -> Tensor:  # [B, C, *S] → [B N, C]
    return images.flatten(2).transpose(1, 2).flatten(0, 1)


def groups_of(size: int, batch: Tensor) -> list[Tensor]:
    """Cut a batch into pieces of so many images."""
    if size == len(batch):
        return [batch]  # the gradient of a slice is copied into zeros
    return [batch[first : first + size] for first in range(0, len(batch), size)]


def _flat(factor: Tensor | None) -> Tensor | None:
    return None if factor is None else factor.flatten()


def _positions(space: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:  # [N, len(space)]
    """Return the position of every pixel, in pixels, last axis (x) first."""
    axes = [torch.arange(size, dtype=dtype, device=device) for size in space]
    grids = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([grid.flatten() for grid in reversed(grids)], dim=1)


def _spatial_kernel(
    space: tuple[int, ...],
    theta_gamma: float,
    normalization: Normalization,
    backend: Backend,
    dtype: torch.dtype,
    device: torch.device,
    joint: int,
) -> Kernel:
    position = (_positions(space, dtype, device) / theta_gamma).repeat(joint, 1)
    return Kernel.build(position, normalization, backend, joint)


@functools.lru_cache(maxsize=2)
def _kept_spatial_kernel(_stream: int, *key: Any) -> Kernel:
    return _spatial_kernel(*key)


def _checked(image: Tensor, extra_features: Tensor | None, backend: Backend) -> tuple[Tensor, Tensor | None]:
    """Return image and further features in the type that the lattice takes."""
    _check_image("image", image)
    dtype = torch.float64 if backend == "reference" and image.dtype == torch.float64 else torch.float32
    image = image.to(dtype)
    if not is_finite(image):
        raise ValueError("image must be finite, got NaN or infinity; replace those pixels first")
    if extra_features is None:
        return image, None
    _check_image("extra_features", extra_features)
    if image.shape[:1] + image.shape[2:] != extra_features.shape[:1] + extra_features.shape[2:]:
        raise ValueError(
            f"extra_features must have the batch and space axes of image, "
            f"got {tuple(extra_features.shape)} and {tuple(image.shape)}"
        )
    extra_features = extra_features.to(image)
    if not is_finite(extra_features):
        raise ValueError("extra_features must be finite, got NaN or infinity; replace those pixels first")
    return image, extra_features


def _check_image(name: str, image: object) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"{name} must be a torch tensor [B, C, *space], got {type(image).__name__}")
    if image.is_complex():
        raise TypeError(f"{name} must be real, got {image.dtype}")
    if not 3 <= image.ndim <= 5:
        raise ValueError(
            f"{name} must be [B, C, *space] with 1 to 3 space axes, got shape {tuple(image.shape)}"
        )
    if image.numel() == 0:
        raise ValueError(f"{name} must have pixels and channels, got shape {tuple(image.shape)}")
