"""The lattice on a GPU, for torch tensors: owns the memory, names the stream, calls the extension.

`lattice` is the only importer. The native side allocates nothing: all memory comes from torch's
caching allocator, so that it is reused in stream order, counted in torch's statistics, and running
out of it is ``torch.OutOfMemoryError`` with nothing half done.

Within `host_loops` the same code runs on CPU tensors, with a module that does in loops what the GPU's
threads do: that is how it is tested where there is no GPU.

Letters: B batch, N points (of all images of a batch), d feature dimensions, M vertices, V values, L labels.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_module: ModuleType | None = None
_reason = "the extension was not compiled with CUDA"
try:
    _module = importlib.import_module("napari_crfasrnn._ext._lattice_cuda")
except ModuleNotFoundError:
    pass  # built without a CUDA compiler
except ImportError as error:
    _reason = f"the CUDA part of the extension does not load here ({error})"

_loops: ModuleType | None = None

# Buffers and the recorded graph of a mean field are kept for its next call up to this many points,
# where queueing kernel by kernel would show; larger ones would hold too much memory.
_LARGEST_KEPT = 1 << 20

MAX_LABELS = 64
"""Labels that the fused mean field takes."""


def is_built() -> bool:
    """Return whether the CUDA backend was compiled."""
    return _module is not None


def why_not() -> str | None:
    """Return why the CUDA backend cannot be used here, as a sentence, or None when it can."""
    if _loops is not None:
        return None
    if _module is None:
        return (
            f"{_reason}; use backend='auto' or 'cpu', "
            "or reinstall from source where the CUDA compiler nvcc is found"
        )
    if not torch.cuda.is_available():
        return (
            "torch sees no CUDA device; use backend='auto' or 'cpu', "
            "or install torch for CUDA and the driver of the GPU"
        )
    return None


def home(device: torch.device) -> torch.device:
    """Return the device on which to build a lattice for tensors of `device`."""
    if _loops is not None:
        return torch.device("cpu")
    return device if device.type == "cuda" else torch.device("cuda", torch.cuda.current_device())


@contextmanager
def host_loops() -> Iterator[None]:
    """Run the backend in host loops on CPU tensors inside a ``with``: slow, for tests on any machine.

    Raises
    ------
    ImportError
        When the extension was built with ``CRFASRNN_HOST_LOOPS=OFF``, as releases are.
    """
    global _loops
    before = _loops
    _loops = importlib.import_module("napari_crfasrnn._ext._lattice_items")
    try:
        yield
    finally:
        _loops = before


def toolkit() -> str | None:
    """Return the CUDA toolkit that compiled the backend, or None."""
    return None if _module is None else str(_module.toolkit())


class CudaLattice:
    """A lattice around features ``[N, d]``, float32, contiguous, on a GPU.

    Parameters
    ----------
    features
        Already divided by the widths of the kernel, ``1 <= d <= 16``.
    n_groups
        How many groups of N / n_groups points follow each other that share nothing: the images of a batch.

    Raises
    ------
    ValueError
        For features that are not finite, too large, or too many.
    RuntimeError
        For a GPU that the extension was not compiled for, or when CUDA fails.
    torch.OutOfMemoryError
        When the GPU's memory runs out.
    """

    def __init__(self, features: Tensor, *, n_groups: int = 1) -> None:
        self.engine = _engine_for(features.device)
        self.device = features.device
        n_points, n_dims = features.shape
        self.native: Any = self.engine.Lattice(n_points, n_dims, n_groups)
        self.order = _StreamOrder()
        with _native_errors(), self.order.on(self.device) as where:
            scratch = _block(self.native.measure_bytes, self.device)
            self.native.measure(features.data_ptr(), *_address(scratch), **where)
            self._geometry = _block(self.native.geometry_bytes, self.device)
            temporary = _block(self.native.temporary_bytes, self.device)
            self.native.number(features.data_ptr(), *_address(self._geometry), *_address(temporary), **where)
            self._tables = _block(self.native.table_bytes, self.device)
            self.native.link(*_address(self._tables), **where)

    @property
    def n_points(self) -> int:
        """N, of all groups together."""
        return int(self.native.n_points)

    @property
    def n_vertices(self) -> int:
        """M, of all groups together."""
        return int(self.native.n_vertices)

    @property
    def n_bytes(self) -> int:
        """Memory held, in bytes."""
        return self._geometry.numel() + self._tables.numel()

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """The memory that native work on this lattice reads."""
        return self._geometry, self._tables

    def filter(
        self,
        values: Tensor,  # [N, V]
        *,
        transpose: bool = False,
    ) -> Tensor:  # [N, V]
        """Queue ``slice(blur(splat(values)))`` on the current stream; float32, on the lattice's device."""
        values = values.contiguous()
        n_values = values.shape[1]
        with _native_errors(), self.order.on(self.device, *self.blocks) as where:
            out = torch.empty_like(values)
            workspace = _block(self.native.workspace_bytes(n_values), self.device)
            self.native.filter(
                values.data_ptr(),
                out.data_ptr(),
                n_values,
                *_address(workspace),
                transpose=transpose,
                **where,
            )
        return out


@dataclass(frozen=True)
class _Buffers:
    """What a mean field for L labels works in; the same addresses every time make a graph reusable."""

    native: Any
    unary: Tensor  # [N, width]
    maps: Tensor  # [2, L, width]
    is_diagonal: Tensor  # [1]
    state: Tensor  # [N, width]
    workspace: Tensor

    def blocks(self) -> tuple[Tensor, ...]:
        return self.unary, self.maps, self.is_diagonal, self.state, self.workspace


class CudaMeanField:
    """Mean-field inference with two kernels, without gradients, all iterations in one submission.

    Parameters
    ----------
    spatial, bilateral
        Lattices around the same N points in the same groups.
    spatial_before, spatial_after, bilateral_before, bilateral_after
        ``[N]`` float32 factors on what goes into and comes out of a filter, or None.
    """

    def __init__(
        self,
        spatial: CudaLattice,
        bilateral: CudaLattice,
        *,
        spatial_before: Tensor | None = None,
        spatial_after: Tensor | None = None,
        bilateral_before: Tensor | None = None,
        bilateral_after: Tensor | None = None,
    ) -> None:
        self._spatial = spatial
        self._bilateral = bilateral
        self._factors = {
            name: None if factors is None else factors.reshape(-1).contiguous()
            for name, factors in (
                ("spatial_before", spatial_before),
                ("spatial_after", spatial_after),
                ("bilateral_before", bilateral_before),
                ("bilateral_after", bilateral_after),
            )
        }
        for name, factors in self._factors.items():
            if factors is not None and factors.shape != (bilateral.n_points,):
                raise ValueError(f"{name} must be [{bilateral.n_points}], got shape {tuple(factors.shape)}")
        self._kept: _Buffers | None = None
        self._kept_labels = 0
        self._order = _StreamOrder()
        self._lock = threading.Lock()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._bilateral.device

    @property
    def has_graph(self) -> bool:
        """Whether the iterations have been recorded as a CUDA graph."""
        return self._kept is not None and bool(self._kept.native.has_graph)

    def run(
        self,
        unary: Tensor,  # [B, L, n], B * n = N
        *,
        spatial: Tensor,  # [L, L]
        bilateral: Tensor,  # [L, L]
        unary_scale: Tensor | float,
        output_scale: Tensor | float,
        n_iterations: int,
    ) -> Tensor:  # [B, L, n]
        """Return ``output_scale`` times the logits after `n_iterations`, from ``unary_scale * unary``.

        The matrices map a kernel's message to what is subtracted from the logits. Everything is queued
        on the current stream and nothing waits for it; NaN in `unary` comes out as NaN.
        """
        n_images, n_labels, n_pixels = unary.shape
        device = self.device
        if n_images * n_pixels != self._bilateral.n_points:
            raise ValueError(
                f"unary must be [B, L, n] with B * n = {self._bilateral.n_points}, got {tuple(unary.shape)}"
            )
        factors = [one for one in self._factors.values() if one is not None]
        reads = (*self._spatial.blocks, *self._bilateral.blocks, *factors)
        with self._lock, _native_errors(), self._order.on(device, *reads) as where:
            self._spatial.order.wait(device)
            self._bilateral.order.wait(device)
            own = self._buffers(n_labels)
            width = own.native.width
            rows = own.unary.view(n_images, n_pixels, width)[:, :, :n_labels]
            rows.copy_(unary.transpose(1, 2))
            rows.mul_(unary_scale)
            for kernel, matrix in enumerate((spatial, bilateral)):
                own.maps[kernel, :, :n_labels].copy_(matrix.T)
            eye = torch.eye(n_labels, width, dtype=torch.bool, device=device)
            own.is_diagonal.copy_(((own.maps == 0) | eye).all())
            own.native.run(
                unary=own.unary.data_ptr(),
                maps=own.maps.data_ptr(),
                is_diagonal=own.is_diagonal.data_ptr(),
                **{name: 0 if one is None else one.data_ptr() for name, one in self._factors.items()},
                state=own.state.data_ptr(),
                n_iterations=n_iterations,
                workspace=own.workspace.data_ptr(),
                n_bytes=own.workspace.numel(),
                **where,
            )
            state = own.state.view(n_images, n_pixels, width)[:, :, :n_labels]
            out = torch.empty_like(unary, memory_format=torch.contiguous_format)
            return torch.mul(state.transpose(1, 2), output_scale, out=out)

    def _buffers(self, n_labels: int) -> _Buffers:
        # A graph of the caller's gets buffers of its own: it may outlive what is kept here.
        may_keep = self._bilateral.n_points <= _LARGEST_KEPT and not (
            self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        )
        if may_keep and self._kept is not None and self._kept_labels == n_labels:
            # Perhaps made on another stream: its memory must outlive what is queued on this one, too.
            _keep_for_current_stream(self._kept.blocks())
            return self._kept
        engine = self._bilateral.engine
        native = engine.MeanField(self._spatial.native, self._bilateral.native, n_labels)
        n_points, device = self._bilateral.n_points, self.device
        # Kept for calls outside inference mode, too, where tensors made inside cannot be written to.
        with torch.inference_mode(False):
            own = _Buffers(
                native=native,
                unary=torch.zeros(n_points, native.width, dtype=torch.float32, device=device),
                maps=torch.zeros(2, n_labels, native.width, dtype=torch.float32, device=device),
                is_diagonal=torch.zeros(1, dtype=torch.int32, device=device),
                state=torch.empty(n_points, native.width, dtype=torch.float32, device=device),
                workspace=_block(native.workspace_bytes, device),
            )
        if may_keep:
            self._kept, self._kept_labels = own, n_labels
        return own


class _StreamOrder:
    """Orders what is queued on different streams one after the other; does nothing within one stream.

    While the caller captures a graph, streams are his business: there is no waiting for what is outside.
    """

    def __init__(self) -> None:
        self._last: torch.cuda.Event | None = None
        self._last_stream: int | None = None

    def wait(self, device: torch.device) -> None:
        """Let the current stream wait for what was queued last."""
        if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return
        stream = torch.cuda.current_stream(device)
        if self._last is not None and self._last_stream != stream.cuda_stream:
            stream.wait_event(self._last)

    @contextmanager
    def on(self, device: torch.device, *reads: Tensor) -> Iterator[dict[str, int]]:
        """Name the device and its current stream to native code, after what was queued before."""
        if device.type != "cuda":
            yield {"device": 0, "stream": 0}
            return
        with torch.cuda.device(device):
            self.wait(device)
            stream = torch.cuda.current_stream(device)
            is_capturing = torch.cuda.is_current_stream_capturing()
            if not is_capturing and self._last_stream not in (None, stream.cuda_stream):
                _keep_for_current_stream(reads)
            yield {"device": stream.device_index, "stream": stream.cuda_stream}
            if not is_capturing:
                self._last = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._last.record(stream)
                self._last_stream = stream.cuda_stream


def _keep_for_current_stream(tensors: tuple[Tensor, ...]) -> None:
    """Keep the allocator from handing this memory on before the current stream is done with it."""
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


@contextmanager
def _native_errors() -> Iterator[None]:
    """Turn a native lack of GPU memory into the error that callers of torch know."""
    try:
        yield
    except MemoryError as error:
        raise torch.cuda.OutOfMemoryError(
            "CUDA ran out of memory in the lattice; use a smaller image or batch, or free memory on the GPU"
        ) from error


def _engine_for(device: torch.device) -> ModuleType:
    if _loops is not None:
        return _loops
    if _module is None or device.type != "cuda":
        raise RuntimeError(f"the CUDA lattice needs CUDA tensors and a CUDA build, got a tensor on {device}")
    index = torch.cuda.current_device() if device.index is None else device.index
    if not _module.can_run_on(index):
        raise RuntimeError(
            f"the extension was not compiled for {torch.cuda.get_device_name(index)}; use backend='cpu', or "
            "reinstall from source with CRFASRNN_CUDA_ARCHITECTURES set to its compute capability"
        )
    return _module


def _block(n_bytes: int, device: torch.device) -> Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8, device=device)


def _address(block: Tensor) -> tuple[int, int]:
    return block.data_ptr(), block.numel()
