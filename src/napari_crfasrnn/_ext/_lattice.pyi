"""
The permutohedral lattice, compiled. Use napari_crfasrnn.lattice instead.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray


class Lattice:
    """Vertices and weights of N points; built once, filters often."""

    def __init__(self, features: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> None:
        """
        Build the lattice around features, float32 [N, d], already divided by the kernel widths.

        Raises ValueError for NaN, infinity, coordinates beyond 2**20 and too many points.
        """

    @staticmethod
    def of_pixels(image: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], space: Sequence[int], *, pixel_of: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], position_width: float, colour_width: float, on_step: Callable[[int, int], None] | None = None) -> Lattice:
        """
        Build the lattice around the pixels of image, float32 [C, N], in the order of pixel_of.

        Features are positions, last axis first, and then channels, each over its width.
        on_step(done, total) is called again and again; what it raises ends the build.
        """

    @property
    def n_points(self) -> int:
        """N"""

    @property
    def n_dims(self) -> int:
        """d"""

    @property
    def n_vertices(self) -> int:
        """M"""

    @property
    def n_bytes(self) -> int:
        """Memory held, in bytes."""

    def row_sums(self, *, on_step: Callable[[int, int], None] | None = None) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None))]:
        """
        Return filter(ones), float32 [N, 1].

        on_step(0, 1) is called again and again; what it raises ends that.
        """

    def filter(self, values: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], *, transpose: bool = False) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None))]:
        """
        Return slice(blur(splat(values))) for values float32 [N, V], C-contiguous.

        transpose applies the adjoint. The GIL is released; several threads may call at once.
        """

class MeanField:
    """Mean-field inference with two kernels, without gradients."""

    def __init__(self, spatial: Lattice, bilateral: Lattice, *, spatial_before: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, spatial_after: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, bilateral_before: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, bilateral_after: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, pixel_of: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, space: Sequence[int] = [], averages: bool = False, on_step: Callable[[int, int], None] | None = None) -> None:
        """
        Join two lattices of the same N points.

        The factors, float32 [N], multiply what goes into and comes out of a filter. pixel_of, uint32 [N],
        tells where each point lies in the planes of run: what order_pixels gave for an image of that space.
        averages tells that the factors make every row of both kernels sum to 1. on_step(0, 1) is called
        again and again; what it raises ends that.
        """

    @property
    def n_points(self) -> int:
        """N"""

    def run(self, unary: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], *, spatial: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], bilateral: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], unary_scale: float, output_scale: float, n_iterations: int, on_iteration: Callable[[int, int], None] | None = None, in_16_bits: bool = False) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None))]:
        """
        Return the refined logits [L, N] of unary [L, N], float32, L <= 64.

        The matrices [L, L] map a kernel's message to what is subtracted from the logits. The GIL is
        released, and taken for on_iteration(done, total) after each iteration, and again and again during a
        long one; what that raises ends the run. in_16_bits stores marginals so, of more than two labels and kernels that average. Raises
        ValueError for NaN or infinity in unary.
        """

class MeanFieldTraining:
    """The mean field with a backward run."""

    def __init__(self, spatial: Lattice, bilateral: Lattice, *, spatial_before: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, spatial_after: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, bilateral_before: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, bilateral_after: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, pixel_of: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, space: Sequence[int] = [], averages: bool = False, on_step: Callable[[int, int], None] | None = None) -> None:
        """As MeanField."""

    @property
    def n_points(self) -> int:
        """N"""

    def forward(self, unary: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], *, spatial: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], bilateral: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], unary_scale: float, output_scale: float, n_iterations: int, with_vertices: bool, on_iteration: Callable[[int, int], None] | None = None) -> tuple[Annotated[NDArray[numpy.float32], dict(shape=(None, None))], Annotated[NDArray[numpy.float32], dict(shape=(None, None))]]:
        """
        Return what MeanField.run returns, and a trace [n_iterations, floats] for backward.

        Only a trace with vertices serves gradients of the matrices.
        """

    def backward(self, trace: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], gradient: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], *, spatial: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], bilateral: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], unary_scale: float, output_scale: float, for_unary: bool, for_spatial: bool, for_bilateral: bool) -> tuple[Annotated[NDArray[numpy.float32], dict(shape=(None, None))] | None, Annotated[NDArray[numpy.float32], dict(shape=(None, None))] | None, Annotated[NDArray[numpy.float32], dict(shape=(None, None))] | None]:
        """
        Return the gradients of unary [L, N] and both matrices [L, L], those that are wanted.

        gradient [L, N] is that of what forward returned with the same matrices and scales.
        """

def dot(a: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], b: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> float:
    """
    Return the sum of a * b, float32 [R, C], in an order that does not depend on the number of threads.
    """

def order_pixels(image: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], space: Sequence[int], *, colour_step: float, pixel_of: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu')], on_step: Callable[[int, int], None] | None = None) -> None:
    """
    Write an order of the pixels of image, float32 [C, N], that suits the cache to pixel_of, uint32 [N].

    on_step(0, 1) is called again and again; what it raises ends that.
    """

def judge(rows: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], found: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], *, feature: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], threshold: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], child: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], root: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], share: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> None:
    """
    Write the mean over trees of the shares [leaves, L] where rows, float32 [N, d], end to found, float32 [N, L].

    A row goes from a node to its child, or where its feature is above the threshold to the node after the
    child; a leaf is its own child. Raises ValueError for tables that are no trees.
    """

def set_n_threads(n_threads: int) -> None:
    """
    Use at most this many threads per call; 0 restores the default. Results do not depend on it.
    """

def n_threads() -> int:
    """How many threads a call uses at most."""

def instruction_sets() -> list[str]:
    """Instruction sets that this processor can run, best first."""

def instruction_set() -> str:
    """The instruction set in use."""

def use_instruction_set(name: str) -> None:
    """
    Compute with this instruction set from now on (for tests and benchmarks).
    """

def version() -> str:
    """Version of the package this was compiled for."""

def compiler() -> str:
    """Name and version of the compiler of this extension."""

def has_cuda() -> bool:
    """Whether the CUDA backend is compiled in."""

def is_debug() -> bool:
    """Whether internal assertions are compiled in."""

def release_memory() -> int:
    """
    Give the memory kept for reuse back to the system; returns the number of bytes.
    """
