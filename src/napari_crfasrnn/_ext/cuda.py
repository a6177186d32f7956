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
        self.built = _StreamOrder()
        with _native_errors(), _current_stream(self.device) as where:
            if _is_capturing(self.device):
                raise RuntimeError(
                    "a lattice cannot be built while a CUDA graph is captured, because building waits for "
                    "the GPU; build it before the capture"
                )
            scratch = _block(self.native.measure_bytes, self.device)
            self.native.measure(features.data_ptr(), *_address(scratch), **where)
            self._geometry = _block(self.native.geometry_bytes, self.device)
            temporary = _block(self.native.temporary_bytes, self.device)
            self.native.number(features.data_ptr(), *_address(self._geometry), *_address(temporary), **where)
            self._tables = _block(self.native.table_bytes, self.device)
            self.native.link(*_address(self._tables), **where)
            self.built.mark(self.device)

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
        with _native_errors(), _current_stream(self.device, *self.blocks) as where:
            self.built.wait(self.device)
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
class _Workplace:
    """Where a mean field for L labels works: the same memory every time makes a graph reusable."""

    n_labels: int
    native: Any
    workspace: Tensor


class CudaMeanField:
    """Mean-field inference with two kernels, without gradients, all iterations in one submission.

    Parameters
    ----------
    spatial, bilateral
        Lattices around the same N points in the same groups.
    spatial_before, spatial_after, bilateral_before, bilateral_after
        ``[N]`` factors on what goes into and comes out of a filter, on any device, or None.
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
            name: None if factors is None else _floats(factors, bilateral.device).reshape(-1)
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
        self._kept: _Workplace | None = None
        self._last_run = _StreamOrder()
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
        unary_scale: float,
        output_scale: float,
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
        with self._lock, _native_errors(), _current_stream(device, *reads) as where:
            logits, *maps = (_floats(tensor, device) for tensor in (unary, spatial, bilateral))
            out = torch.empty_like(logits)
            own = self._workplace(n_labels)
            for order in (self._spatial.built, self._bilateral.built, self._last_run):
                order.wait(device)
            own.native.run(
                unary=logits.data_ptr(),
                n_images=n_images,
                unary_scale=unary_scale,
                spatial_map=maps[0].data_ptr(),
                bilateral_map=maps[1].data_ptr(),
                **{name: 0 if one is None else one.data_ptr() for name, one in self._factors.items()},
                output_scale=output_scale,
                out=out.data_ptr(),
                n_iterations=n_iterations,
                workspace=own.workspace.data_ptr(),
                n_bytes=own.workspace.numel(),
                **where,
            )
            self._last_run.mark(device)
        return out

    def _workplace(self, n_labels: int) -> _Workplace:
        # A graph of the caller's gets memory of its own: it may outlive what is kept here.
        may_keep = self._bilateral.n_points <= _LARGEST_KEPT and not _is_capturing(self.device)
        if may_keep and self._kept is not None:
            if self._kept.n_labels == n_labels:
                # Perhaps made on another stream: its memory must outlive what is queued on this one, too.
                _keep_for_current_stream((self._kept.workspace,))
                return self._kept
            self._kept = None  # before there is memory for another
        native = self._bilateral.engine.MeanField(self._spatial.native, self._bilateral.native, n_labels)
        own = _Workplace(n_labels, native, _block(native.workspace_bytes, self.device))
        if may_keep:
            self._kept = own
        return own


class _StreamOrder:
    """Lets other streams wait for what was queued last on one; does nothing within one stream.

    While the caller captures a graph, streams are his business: there is no waiting for what is outside.
    """

    def __init__(self) -> None:
        self._last: tuple[int, torch.cuda.Event] | None = None  # replaced as a whole: threads may read it

    def wait(self, device: torch.device) -> None:
        """Let the current stream wait for what was marked last."""
        last = self._last
        if last is None or _is_capturing(device):
            return
        stream = torch.cuda.current_stream(device)
        if last[0] != stream.cuda_stream:
            stream.wait_event(last[1])

    def mark(self, device: torch.device) -> None:
        """Note that everything so far has been queued on the current stream."""
        if device.type != "cuda" or _is_capturing(device):
            return
        stream = torch.cuda.current_stream(device)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        self._last = stream.cuda_stream, event


@contextmanager
def _current_stream(device: torch.device, *reads: Tensor) -> Iterator[dict[str, int]]:
    """Make the device current and name it and its stream to native code, which reads these tensors there."""
    if device.type != "cuda":
        yield {"device": 0, "stream": 0}
        return
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device)
        if not _is_capturing(device):
            _keep_for_current_stream(reads)
        yield {"device": stream.device_index, "stream": stream.cuda_stream}


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


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
    with torch.cuda.device(index):
        can_run = _module.can_run_on(index)
    if not can_run:
        raise RuntimeError(
            f"the extension was not compiled for {torch.cuda.get_device_name(index)}; use backend='cpu', or "
            "reinstall from source with CRFASRNN_CUDA_ARCHITECTURES set to its compute capability"
        )
    return _module


def _block(n_bytes: int, device: torch.device) -> Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8, device=device)


def _floats(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.detach().to(device, torch.float32).contiguous()


def _address(block: Tensor) -> tuple[int, int]:
    return block.data_ptr(), block.numel()
