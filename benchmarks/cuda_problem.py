"""Images, and the dense CRFs around them that `cuda_rows.py` builds and iterates on a GPU.

Letters: B batch, L labels, n pixels of an image, S the space axes, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any


@functools.cache
def photographs(size: int, at_most: int = 5) -> list[Any]:  # of [size, size, 3] float32
    """Return real photographs that scikit-image ships, resized; without them one that looks like it."""
    import numpy as np

    names = ("astronaut", "coffee", "chelsea", "rocket", "immunohistochemistry")
    found = []
    try:
        from skimage import data
        from skimage.transform import resize
    except ImportError as error:
        print(f"no photographs: {error}", flush=True)
        names = ()
    for name in names:
        if len(found) == at_most:
            break
        try:
            image = getattr(data, name)()[..., :3]
        except (AttributeError, OSError, ImportError) as error:  # not in this version, or not in the wheel
            print(f"no photograph {name}: {error}", flush=True)
            continue
        resized = resize(image, (size, size), preserve_range=True, anti_aliasing=size < image.shape[0])
        found.append(resized.astype(np.float32))
    if not found:
        y, x = np.mgrid[:size, :size] / size
        image = np.stack([200 * x, 120 * y + 60 * (x > y), 90 + 80 * np.sin(9 * x * y)], axis=-1)
        image += np.random.default_rng(0).normal(scale=4, size=image.shape)
        found = [np.clip(image, 0, 255).astype(np.float32)]
    return found


def photograph(size: int) -> Any:  # [size, size, 3] float32
    return photographs(size, 1)[0]  # a large one takes seconds to resize


class Problem:
    """Dense CRFs of a batch of images: built and iterated as one."""

    def __init__(self, images: Sequence[Any], n_labels: int, theta: tuple[float, float, float] = (160, 3, 3)):
        import torch

        stack = torch.stack([torch.as_tensor(image) for image in images]).to("cuda")  # [B, *S, C]
        self.n_images, *space, _ = stack.shape
        axes = [torch.arange(s, device="cuda", dtype=torch.float32) for s in space]
        grids = torch.meshgrid(*axes, indexing="ij")
        position = torch.stack([grid.flatten() for grid in reversed(grids)], dim=1).repeat(self.n_images, 1)
        self.spatial_features = position / theta[2]
        colour = stack.flatten(0, -2)
        self.bilateral_features = torch.cat([position / theta[0], colour / theta[1]], dim=1)
        # Noise without structure: every label lives everywhere, and more pixels are undecided than in a
        # real image, which is the hard case for the comparison with the CPU.
        n_pixels = position.shape[0] // self.n_images
        generator = torch.Generator().manual_seed(0)
        self.unary = (2 * torch.randn(self.n_images, n_labels, n_pixels, generator=generator)).to("cuda")
        self.map = -torch.eye(n_labels, device="cuda")

    def kernel(self, features: Any) -> tuple[Any, Any]:
        """Return a lattice and its normalisation."""
        import torch

        from napari_crfasrnn._ext.cuda import CudaLattice

        lattice = CudaLattice(features.contiguous(), n_groups=self.n_images)
        return lattice, lattice.filter(torch.ones_like(features[:, :1])).reciprocal()

    def field(self, spatial: tuple[Any, Any] | None = None) -> Any:
        """Build what an image needs; the spatial kernel is the same for all of a size and may be given."""
        from napari_crfasrnn._ext.cuda import CudaMeanField

        near, spatial_after = spatial or self.kernel(self.spatial_features)
        alike, bilateral_after = self.kernel(self.bilateral_features)
        return CudaMeanField(near, alike, spatial_after=spatial_after, bilateral_after=bilateral_after)

    def run(self, field: Any, *, general: bool = False) -> Any:  # [B, L, n]
        """Queue ten iterations; return the logits."""
        maps = self.map + (0.01 if general else 0.0)
        return field.run(
            self.unary,
            spatial=3 * maps,
            bilateral=5 * maps,
            unary_scale=1.0,
            output_scale=1.0,
            n_iterations=10,
        )

    def on_cpu(self) -> Any:  # [L, n]
        """Return the CPU backend's logits of the first image."""
        import torch

        from napari_crfasrnn.lattice import Lattice
        from napari_crfasrnn.mean_field import MeanField

        n = self.unary.shape[2]
        features = (self.spatial_features, self.bilateral_features)
        lattices = [Lattice(f[:n].cpu(), backend="cpu") for f in features]
        factors = [(None, 1 / lattice.filter(torch.ones(n, 1)).flatten()) for lattice in lattices]
        maps = self.map.cpu()
        return MeanField(lattices[0], lattices[1], factors[0], factors[1]).run(
            self.unary[0].cpu(),
            spatial_map=3 * maps,
            bilateral_map=5 * maps,
            unary_scale=1.0,
            output_scale=1.0,
            n_iterations=10,
        )


def volume() -> list[Any]:  # of [128, 128, 128, 1] float32
    import numpy as np

    z, y, x = np.mgrid[:128, :128, :128].astype(np.float32) / 128
    noise = np.random.default_rng(0).normal(scale=0.03, size=x.shape)
    grey = 255 * np.clip(np.sin(7 * x * y + 5 * z) ** 2 + noise, 0, 1)
    return [grey[..., None].astype(np.float32)]


def six_channels() -> list[Any]:  # of [500, 500, 6] float32
    import numpy as np

    return [np.concatenate([photograph(500), photographs(500)[-1][::-1]], axis=2)]


def batch(size: int) -> list[Any]:
    return (photographs(size) * 8)[:8]
