"""High-dimensional Gaussian filtering: build a lattice around features once, filter values often.

This is the only room that knows the compiled extension. It checks what users pass, chooses the
backend, and makes the filter differentiable.

Letters: N points, d feature dimensions, M vertices, V values per point.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_crfasrnn._ext import cuda
from napari_crfasrnn._reference import ReferenceLattice
from napari_crfasrnn.progress import let_signals_through

try:
    from napari_crfasrnn._ext import _lattice
except ImportError as error:  # pragma: no cover - a broken installation
    raise ImportError(
        "the compiled extension napari_crfasrnn._ext._lattice is missing or does not load on this machine; "
        "reinstall the package with `pip install --force-reinstall --no-deps napari-crfasrnn`"
    ) from error

Backend = Literal["auto", "cpu", "cuda", "reference"]
MAX_DIMS = 16

_logger = logging.getLogger(__name__)
_said: set[str] = set()


def available_backends() -> tuple[str, ...]:
    """Return the backends that work here, best first; "auto" chooses the first that fits the input."""
    return ("cpu", "reference") if cuda.why_not() is not None else ("cuda", "cpu", "reference")


def build_config() -> dict[str, object]:
    """Return how the extension was compiled and what it uses here: for bug reports and tests."""
    return {
        "version": _lattice.version(),
        "compiler": _lattice.compiler(),
        "debug": _lattice.is_debug(),
        "cuda": cuda.is_built(),
        "cuda_toolkit": cuda.toolkit(),
        "simd": _lattice.instruction_set(),
        "simd_available": tuple(_lattice.instruction_sets()),
        "threads": _lattice.n_threads(),
        "backends": available_backends(),
    }


def set_num_threads(n_threads: int) -> None:
    """Let the compiled backend use at most `n_threads`; 0 restores the default.

    The default is ``OMP_NUM_THREADS`` where it is set, else the processors this process may use.
    Results are the same bits for every number of threads.
    """
    try:
        n_threads = operator.index(n_threads)
    except TypeError:
        raise TypeError(f"n_threads must be an integer, got {n_threads!r}") from None
    if n_threads < 0:
        raise ValueError(f"n_threads must be 0 or more, got {n_threads}")
    _lattice.set_n_threads(n_threads)


def release_memory() -> None:
    """Give back to the system what the compiled backend keeps for the next image."""
    _lattice.release_memory()


class Lattice:
    """A permutohedral lattice around N points with d features each (Adams et al. 2010).

    Parameters
    ----------
    features
        ``[N, d]`` float32, NumPy or torch, already divided by the widths of the Gaussian; ``1 <= d <= 16``.
        The "reference" backend also takes float64 and then computes in it. Not differentiable.
    backend
        "auto" takes the compiled one for the device of `features` (and says so once in the log);
        "cpu" and "cuda" insist on one; "reference" is slow, readable NumPy.
    n_groups
        "cuda" alone: the points are those of this many images, one behind the other, which share nothing.

    Raises
    ------
    TypeError
        For features that are no array, or of another dtype.
    ValueError
        For another shape, NaN or infinity, coordinates beyond about 2**20, or an unknown backend.
    RuntimeError
        For "cuda" where the extension was built without it, or where there is no such GPU.
    torch.OutOfMemoryError
        When the memory of the GPU runs out; the process goes on.
    """

    def __init__(
        self,
        features: NDArray[np.floating[Any]] | Tensor,
        *,
        backend: Backend = "auto",
        n_groups: int = 1,
    ) -> None:
        self._device = features.device if isinstance(features, Tensor) else torch.device("cpu")
        self._backend = choose_backend(backend, self._device)
        _check_features(features, self._backend)
        if n_groups != 1 and self._backend != "cuda":
            raise ValueError(
                f"n_groups must be 1 for backend {self._backend!r}, got {n_groups}; build a lattice per image"
            )
        self._n_points: int = features.shape[0]
        self._n_dims: int = features.shape[1]
        self._native: Any
        if self._backend == "reference":
            self._native = ReferenceLattice(_to_numpy(features))
        elif self._backend == "cuda":
            on_device = _to_tensor(features).to(cuda.home(self._device)).contiguous()
            self._native = cuda.CudaLattice(on_device, n_groups=n_groups)
        else:
            self._native = _lattice.Lattice(_to_numpy(features))

    @classmethod
    def of_pixels(
        cls,
        image: Tensor,  # [C, N] float32 on the CPU
        space: tuple[int, ...],
        order: Tensor,  # [N] int32
        *,
        position_width: float,
        colour_width: float = 1.0,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Lattice:
        """Build the compiled lattice around the pixels of an image, on the CPU.

        Features are positions, last axis (x) first, and then the C channels (none is fine), each over its
        width. They are computed on the way and never stored.

        Parameters
        ----------
        image
            ``[C, N]`` float32 on the CPU, N the product of `space`.
        space
            Size of the space axes.
        order
            Which pixel each point is: a permutation of ``0..N-1``, see `order_pixels`.
        position_width, colour_width
            Widths of the Gaussian.
        on_step
            Called with (done, total) every 50 ms at least while the lattice is built; what it raises ends
            that.

        Raises
        ------
        ValueError
            As the constructor does.
        """
        n_dims = len(space) + len(image)
        if not 1 <= n_dims <= MAX_DIMS:
            raise ValueError(
                f"features must have 1 to {MAX_DIMS} dimensions, "
                f"got {len(space)} of space and {len(image)} channels"
            )
        lattice = cls.__new__(cls)
        lattice._device = image.device
        lattice._backend = choose_backend("cpu", image.device)
        lattice._native = _lattice.Lattice.of_pixels(
            as_array(image),
            list(space),
            pixel_of=as_order(order),
            position_width=position_width,
            colour_width=colour_width,
            on_step=on_step or let_signals_through,
        )
        lattice._n_points = len(order)
        lattice._n_dims = n_dims
        return lattice

    def __getstate__(self) -> object:
        """Refuse to be pickled or copied, for the sake of those who hold one, such as a prepared image."""
        raise TypeError(
            "a lattice cannot be pickled or copied, nor can a prepared image, which holds some: "
            "give the image to the other process and prepare it there, or use the same object"
        )

    def __repr__(self) -> str:
        return (
            f"Lattice(n_points={self.n_points}, n_dims={self.n_dims}, "
            f"n_vertices={self.n_vertices}, backend={self.backend!r})"
        )

    @property
    def n_points(self) -> int:
        """N, the number of points."""
        return self._n_points

    @property
    def n_dims(self) -> int:
        """d, the number of feature dimensions."""
        return self._n_dims

    @property
    def n_vertices(self) -> int:
        """M, the number of lattice vertices around the points."""
        return int(self._native.n_vertices)

    @property
    def backend(self) -> str:
        """The backend in use: "cpu", "cuda" or "reference"."""
        return self._backend

    @overload
    def filter(self, values: NDArray[Any], *, transpose: bool = False) -> NDArray[Any]: ...
    @overload
    def filter(self, values: Tensor, *, transpose: bool = False) -> Tensor: ...

    def filter(self, values: NDArray[Any] | Tensor, *, transpose: bool = False) -> NDArray[Any] | Tensor:
        """Return ``K @ values`` for the lattice's approximation K of the Gaussian kernel matrix.

        Parameters
        ----------
        values
            ``[N, V]`` float32, NumPy or torch ("reference": float32 or float64); any strides. Inside
            ``torch.autocast`` also tensors in half precision; what comes out is float32.
        transpose
            Apply the exact adjoint of K. (K is not symmetric: the blur visits the axes in order.)

        Returns
        -------
        Array like `values`, ``[N, V]``, on its device; unnormalised. For tensors the result is
        differentiable any number of times with respect to `values`: K is linear, and its backward
        is the adjoint.

        Raises
        ------
        TypeError
            For values that are no array, or of another dtype.
        ValueError
            For another shape.
        """
        if isinstance(values, Tensor) and _is_half_by_autocast(values):
            values = values.float()
        _check_values(values, self)
        if isinstance(values, Tensor):
            return _Filter.apply(values, self, transpose)  # type: ignore[no-any-return, no-untyped-call]
        return self._apply(values, transpose)

    def row_sums(self, *, on_step: Callable[[int, int], None] | None = None) -> Tensor:  # [N, 1]
        """Return the row sums of K, ``filter(ones)``, float32 on the device of the features.

        The compiled backend on the CPU calls ``on_step(0, 1)`` about every 50 ms; what it raises ends that.
        """
        if self._backend == "cpu":
            sums = self._native.row_sums(on_step=on_step or let_signals_through)
            return torch.from_numpy(sums).to(self._device)
        return self._apply_to_tensor(torch.ones(self._n_points, 1, device=self._device), False)

    def _apply(self, values: NDArray[Any], transpose: bool) -> NDArray[Any]:
        if self._backend == "reference":
            return self._native.filter(np.asarray(values), transpose=transpose)  # type: ignore[no-any-return]
        if self._backend == "cuda":
            return self._apply_to_tensor(_to_tensor(values), transpose).numpy()
        return self._native.filter(np.ascontiguousarray(values), transpose=transpose)  # type: ignore[no-any-return]

    def _apply_to_tensor(self, values: Tensor, transpose: bool) -> Tensor:
        if self._backend == "cuda":
            on_device = values.to(self._native.device)
            return self._native.filter(on_device, transpose=transpose).to(values.device)  # type: ignore[no-any-return]
        return torch.from_numpy(self._apply(values.cpu().numpy(), transpose)).to(values.device)


def order_pixels(
    image: Tensor,  # [C, N] float32 on the CPU
    space: tuple[int, ...],
    *,
    colour_step: float,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:  # [N] int32
    """Return an order of the pixels in which neighbours share lattice vertices: faster for the cache.

    Squares of the last two axes follow one another; in each of them colours (of the first three
    channels) that differ by less than `colour_step` are together. ``on_step(0, 1)`` is called about every
    50 ms; what it raises ends that.
    """
    order = np.empty(image.shape[1], np.uint32)
    _lattice.order_pixels(
        as_array(image), list(space), colour_step=colour_step, pixel_of=order, on_step=on_step
    )
    return torch.from_numpy(order.view(np.int32))  # a lattice has less than 2^31 points


def as_order(
    pixel_of: Tensor,  # [N] int32
) -> NDArray[np.uint32]:  # [N]
    """Return an order of pixels as compiled code takes it: the same memory."""
    return pixel_of.numpy().view(np.uint32)


def as_array(tensor: Tensor) -> NDArray[np.float32]:
    """Return a tensor as compiled code on the CPU takes it; the same memory where that can be."""
    return np.ascontiguousarray(tensor.detach().cpu().to(torch.float32).numpy())


class _Filter(torch.autograd.Function):
    """The filter as a differentiable function of its values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lattice: Lattice, transpose: bool) -> Tensor:
        ctx.lattice = lattice
        ctx.transpose = transpose
        return lattice._apply_to_tensor(values.detach(), transpose)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Filter.apply(gradients[0], ctx.lattice, not ctx.transpose), None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        values = tangents[0]
        if values is None:
            return None
        return _Filter.apply(values, ctx.lattice, ctx.transpose)  # type: ignore[no-any-return, no-untyped-call]


def choose_backend(backend: str, device: torch.device) -> str:
    """Return what "auto" stands for with tensors of this device; any other backend as it is, if it works."""
    if backend not in ("auto", "cpu", "cuda", "reference"):
        raise ValueError(f"backend must be 'auto', 'cpu', 'cuda' or 'reference', got {backend!r}")
    reason = cuda.why_not()
    if backend == "cuda" and reason is not None:
        raise RuntimeError(f"backend 'cuda' cannot be used: {reason}")
    if backend != "auto":
        return backend
    if device.type == "cuda" and reason is None:
        _say_once(logging.INFO, f"lattice backend: cuda ({cuda.toolkit()})")
        return "cuda"
    if device.type == "cpu":
        _say_once(logging.INFO, f"lattice backend: cpu ({_lattice.instruction_set()})")
    else:
        _say_once(
            logging.WARNING,
            f"the lattice has no backend for {device.type!r} tensors here: it computes on the CPU and copies"
            + (f" ({reason})" if device.type == "cuda" else ""),
        )
    return "cpu"


def _say_once(level: int, message: str) -> None:
    if message not in _said:
        _said.add(message)
        _logger.log(level, message)


def _check_features(features: object, backend: str) -> None:
    _check_dtype("features", features, backend)
    assert isinstance(features, np.ndarray | Tensor)
    shape = tuple(features.shape)
    if len(shape) != 2:
        raise ValueError(f"features must be [N, d], got shape {shape}")
    if not 1 <= shape[1] <= MAX_DIMS:
        raise ValueError(f"features must have 1 to {MAX_DIMS} dimensions, got {shape[1]} in shape {shape}")


def _to_numpy(array: NDArray[np.floating[Any]] | Tensor) -> NDArray[np.floating[Any]]:
    """Return a contiguous NumPy array on the CPU."""
    return np.ascontiguousarray(array.detach().cpu().numpy() if isinstance(array, Tensor) else array)


def _to_tensor(array: NDArray[np.floating[Any]] | Tensor) -> Tensor:
    """Return a tensor, on the device it is on."""
    if isinstance(array, Tensor):
        return array.detach()
    array = np.ascontiguousarray(array)
    # torch has no read-only tensors and warns of them, although nothing here writes to its input.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _is_half_by_autocast(values: Tensor) -> bool:
    # As torch treats its own operations that need float32: half precision would lose the small differences.
    is_half = values.dtype in (torch.float16, torch.bfloat16)
    return is_half and torch.is_autocast_enabled(values.device.type)


def _check_values(values: object, lattice: Lattice) -> None:
    _check_dtype("values", values, lattice.backend)
    assert isinstance(values, np.ndarray | Tensor)
    if values.ndim != 2 or values.shape[0] != lattice.n_points:
        raise ValueError(
            f"values must be [N, V] with N = {lattice.n_points}, got shape {tuple(values.shape)}"
        )


def _check_dtype(name: str, array: object, backend: str) -> None:
    if not isinstance(array, np.ndarray | Tensor):
        raise TypeError(f"{name} must be a NumPy array or torch tensor, got {type(array).__name__}")
    dtype = str(array.dtype).removeprefix("torch.")
    allowed = ("float32", "float64") if backend == "reference" else ("float32",)
    if dtype not in allowed:
        raise TypeError(
            f"{name} must be {' or '.join(allowed)} for backend {backend!r}, got {dtype}; convert it first"
        )
