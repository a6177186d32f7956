"""The Gaussian kernels of images: features, lattices, normalisation.

They depend on the image and on the widths of the kernels, not on what a CRF learns beside these, and
are built once to be used in every mean-field iteration and every backward pass.

Letters: B batch, C image channels, L labels, S the space axes (H W, or Z H W), N pixels or voxels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from napari_crfasrnn.config import CrfConfig, Normalization
from napari_crfasrnn.lattice import (
    Backend,
    Lattice,
    MeanField,
    choose_backend,
    order_pixels,
    pixel_features,
)

# Spatial lattices depend on the image's size only and are kept for the next image; larger ones
# would hold too much memory (about 75 bytes a pixel).
_LARGEST_KEPT = 1 << 20

# A GPU takes a batch as one lattice up to this many pixels, image by image beyond.
_LARGEST_JOINT = 1 << 24


@dataclass(frozen=True)
class Kernel:
    """One Gaussian kernel over the pixels of an image, normalised by its row sums."""

    lattice: Lattice
    before: Tensor | None  # [N, 1], multiplies what goes in
    after: Tensor | None  # [N, 1], multiplies what comes out

    @classmethod
    def build(
        cls, features: Tensor, normalization: Normalization, backend: Backend, n_groups: int = 1
    ) -> Kernel:
        """Build the kernel of features [N, d], of so many images one behind the other."""
        lattice = Lattice(features, backend=backend, n_groups=n_groups)
        if normalization == "none":
            return cls(lattice, None, None)
        row_sums = lattice.filter(torch.ones_like(features[:, :1]))
        if normalization == "after":
            return cls(lattice, None, 1.0 / row_sums)
        root = row_sums.rsqrt()
        return cls(lattice, root, root)

    def apply(
        self,
        marginals: Tensor,  # [N, L]
    ) -> Tensor:  # [N, L]
        """Pass messages: return the filtered and normalised marginals."""
        values = marginals if self.before is None else marginals * self.before
        message = self.lattice.filter(values)
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
    """For each bilateral kernel the pixel at each of its points, int64 ``[N]``; None: they are in order."""

    @property
    def n_images(self) -> int:
        """B, the size of the batch."""
        return len(self.bilateral) * self.images_per_kernel

    @property
    def backend(self) -> str:
        """The lattice backend in use."""
        return self.bilateral[0].lattice.backend

    @functools.cached_property
    def fused(self) -> tuple[MeanField, ...] | None:
        """The compiled inference of each bilateral kernel, or None where the backend has none."""
        if self.backend == "reference":
            return None
        pixel_of = self.pixel_of or (None,) * len(self.bilateral)
        return tuple(
            MeanField(
                spatial.lattice,
                bilateral.lattice,
                (_flat(spatial.before), _flat(spatial.after)),
                (_flat(bilateral.before), _flat(bilateral.after)),
                pixel_of=order,
                averages=self.averages,
            )
            for spatial, bilateral, order in zip(self.spatial, self.bilateral, pixel_of, strict=True)
        )

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
            if order is not None:
                order = order.to(flat.device)
                flat = flat[order]
            filtered = kernel.lattice.filter(flat.contiguous())
            if order is not None:
                filtered = torch.empty_like(filtered).index_copy(0, order, filtered)
            filtered = filtered.reshape(len(group), -1, values.shape[1]).transpose(1, 2)
            sums.append(filtered.reshape(group.shape))
        return torch.cat(sums)

    @property
    def averages(self) -> bool:
        """Whether the rows of the kernels sum to 1, so that messages are averages of marginals."""
        return all(kernel.before is None and kernel.after is not None for kernel in self.spatial)


def prepare_image(
    image: Tensor,  # [B, C, *S]
    config: CrfConfig,
    backend: Backend,
) -> PreparedImage:
    """Build the kernels of a batch of images; see `CrfRnn.prepare`."""
    _check_image(image)
    dtype = torch.float64 if backend == "reference" and image.dtype == torch.float64 else torch.float32
    image = image.to(dtype)
    if not bool(torch.isfinite(image).all()):
        raise ValueError("image must be finite, got NaN or infinity; replace those pixels first")
    space = tuple(image.shape[2:])
    if choose_backend(backend, image.device) == "cpu":
        return _prepare_ordered(image, space, config, backend)
    n_pixels = image[0, 0].numel() * len(image)
    is_joint = n_pixels <= _LARGEST_JOINT and choose_backend(backend, image.device) == "cuda"
    joint = len(image) if is_joint else 1
    key = (space, config.theta_gamma, config.normalization, backend, dtype, image.device, joint)
    n_points = n_pixels // len(image) * joint
    spatial = (_kept_spatial_kernel if n_points <= _LARGEST_KEPT else _spatial_kernel)(*key)
    position = (_positions(space, dtype, image.device) / config.theta_alpha).repeat(joint, 1)
    bilateral = []
    for images in groups_of(joint, image):
        colour = images.flatten(2).transpose(1, 2).flatten(0, 1) / config.theta_beta
        features = torch.cat([position, colour], dim=1)
        bilateral.append(Kernel.build(features, config.normalization, backend, joint))
    spatials = (spatial,) * len(bilateral)
    return PreparedImage(space, dtype, image.device, spatials, tuple(bilateral), joint)


def _prepare_ordered(
    image: Tensor, space: tuple[int, ...], config: CrfConfig, backend: Backend
) -> PreparedImage:
    """Build kernels over the pixels in an order that suits the cache of a processor."""
    spatial, bilateral, orders = [], [], []
    for planes in image.cpu().flatten(2):
        # A step of four widths is about the distance of neighbouring lattice vertices.
        order = order_pixels(planes, space, colour_step=4.0 * config.theta_beta)
        nowhere = planes[:0]
        features = pixel_features(nowhere, space, order, config.theta_gamma, 1.0)
        spatial.append(Kernel.build(features, config.normalization, backend))
        features = pixel_features(planes, space, order, config.theta_alpha, config.theta_beta)
        bilateral.append(Kernel.build(features, config.normalization, backend))
        orders.append(order)
    return PreparedImage(space, image.dtype, image.device, tuple(spatial), tuple(bilateral), 1, tuple(orders))


def groups_of(size: int, batch: Tensor) -> list[Tensor]:
    """Cut a batch into pieces of so many images."""
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
def _kept_spatial_kernel(*key: Any) -> Kernel:
    return _spatial_kernel(*key)


def _check_image(image: object) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"image must be a torch tensor [B, C, *space], got {type(image).__name__}")
    if image.is_complex():
        raise TypeError(f"image must be real, got {image.dtype}")
    if not 3 <= image.ndim <= 5:
        raise ValueError(
            f"image must be [B, C, *space] with 1 to 3 space axes, got shape {tuple(image.shape)}"
        )
    if image.numel() == 0:
        raise ValueError(f"image must have pixels and channels, got shape {tuple(image.shape)}")
