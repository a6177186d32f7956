"""
The permutohedral lattice, compiled. Use napari_crfasrnn.lattice instead.
"""

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

    def filter(self, values: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], *, transpose: bool = False) -> None:
        """
        Write slice(blur(splat(values))) to out; both float32 [N, V], C-contiguous, not overlapping.

        transpose applies the adjoint. The GIL is released; several threads may call at once.
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
