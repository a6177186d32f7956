"""What `benchmarks/cuda.py` measures on a GPU: one function a row, run in a process of its own.

    python benchmarks/cuda_rows.py "500² L=21" deterministic     # with the package that Python finds

Prints a line when a row starts and one of JSON when it is done. A row that fails ends the process; who
started it notes that and starts another one for the rows that are left.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cuda_problem import Problem, batch, photograph, photographs, six_channels, volume

START, DONE = "@@ start ", "@@ done "

Result = dict[str, Any]
"""Either "cells" for the table of times or a "text"; "passed" where there is a bar, or something to hold."""

TOLERANCE = 1e-4
"""How far from the CPU's a result may be: 99.99 % of the marginals, gradients relative to the largest."""


@dataclass(frozen=True)
class Row:
    """A row of the report, and how many seconds it may take."""

    work: Callable[[], Result]
    limit_s: float = 45.0
    bar: str = ""


def timed(work: Callable[[], object], repeats: int = 15) -> tuple[float, float]:
    """Return median and minimum wall milliseconds of work, the GPU's included."""
    import torch

    found = []
    for i in range(repeats + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if i >= 3:
            found.append(1e3 * (time.perf_counter() - start))
    return statistics.median(found), min(found)


# --- The table of times ----------------------------------------------------------------------------------

COLUMNS = ("M/N", "all", "all, min", "image", "iterations", "general", "peak MiB", "error")


def times(
    images: Callable[[], Sequence[Any]], n_labels: int, *, bar_ms: float | None = None, compare: bool = False
) -> Result:
    """Return one row of the table."""
    import torch

    found = images()
    if not found:
        return {"text": "no such photograph here"}
    problem = Problem(found, n_labels)
    repeats = 15 if problem.unary.numel() < 1 << 27 else 5
    spatial = problem.kernel(problem.spatial_features)
    field = problem.field(spatial)
    result = problem.run(field)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    total, fastest = timed(lambda: problem.run(problem.field()), repeats)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    image, _ = timed(lambda: problem.run(problem.field(spatial)), repeats)
    iterations, _ = timed(lambda: problem.run(field), repeats)
    general, _ = timed(lambda: problem.run(field, general=True), repeats)
    error, passed = "", bool(torch.isfinite(result).all())
    if compare:
        ours, theirs = result[0].cpu().softmax(0), problem.on_cpu().softmax(0)
        gap = (ours - theirs).abs().flatten()
        flips = float((ours.argmax(0) != theirs.argmax(0)).float().mean())
        top = float(gap.kthvalue(max(1, int(0.9999 * gap.numel()))).values)
        error = f"{top:.1e} / {float(gap.max()):.1e} / {flips:.1e}"
        passed = passed and top <= TOLERANCE
    if bar_ms is not None:
        passed = passed and total <= bar_ms
    m = field._bilateral.n_vertices / problem.bilateral_features.shape[0]
    figures = [f"{ms:.2f}" for ms in (total, fastest, image, iterations, general)]
    return {"cells": [f"{m:.2f}", *figures, f"{peak:.0f}", error], "passed": passed}


# --- What must hold ---------------------------------------------------------------------------------------


def agrees(results: Sequence[Any], what: str) -> Result:
    """Report whether all tensors are the same bits as the first."""
    import torch

    same = [bool(torch.equal(results[0], other)) for other in results[1:]]
    return {"text": f"{sum(same)} of {len(same)} {what}: the same bits", "passed": all(same)}


def deterministic() -> Result:
    problem = Problem([photograph(500)], 21)
    return agrees([problem.run(problem.field()) for _ in range(5)], "further builds with ten iterations")


def graph_replays() -> Result:
    problem = Problem([photograph(500)], 21)
    field = problem.field()
    results = [problem.run(field) for _ in range(4)]
    found = agrees(results, "repeated calls")
    text = f"{found['text']}; {'recorded' if field.has_graph else 'NOT recorded'} as a graph"
    return {"text": text, "passed": found["passed"] and field.has_graph}


def backward() -> Result:
    """Compare filter, its gradient, and the gradient through five iterations with the CPU's."""
    import torch

    from napari_crfasrnn.lattice import Lattice

    problem = Problem([photograph(200)], 21)
    n = problem.unary.shape[2]
    found = []
    for device, backend in (("cpu", "cpu"), ("cuda", "cuda")):
        features = [f.to(device) for f in (problem.spatial_features, problem.bilateral_features)]
        lattices = [Lattice(f, backend=backend) for f in features]
        norms = [1 / lattice.filter(torch.ones(n, 1, device=device)) for lattice in lattices]
        values = problem.unary[0].T.to(device).contiguous().requires_grad_()
        filtered = lattices[1].filter(values)
        (of_filter,) = torch.autograd.grad(filtered, values, values.detach().flip(0))
        (of_iterations,) = torch.autograd.grad(iterated(values, lattices, norms).square().mean(), values)
        found.append([t.detach().cpu().double() for t in (filtered, of_filter, of_iterations)])
    gaps = [float((b - a).abs().max() / a.abs().max()) for a, b in zip(*found, strict=True)]
    words = ", ".join(
        f"{w} {g:.1e}" for w, g in zip(("filter", "its gradient", "five iterations'"), gaps, strict=True)
    )
    return {"text": f"relative to the largest: {words}", "passed": max(gaps) <= TOLERANCE}


def iterated(unary: Any, lattices: Sequence[Any], norms: Sequence[Any]) -> Any:  # [N, L]
    state = unary
    for _ in range(5):
        q = state.softmax(1)
        messages = [lattice.filter(q) * norm for lattice, norm in zip(lattices, norms, strict=True)]
        state = unary + 3 * messages[0] + 5 * messages[1]
    return state


def training() -> Result:
    """Time forward and backward of five iterations through autograd."""
    import torch

    from napari_crfasrnn.lattice import Lattice

    problem = Problem([photograph(500)], 21)
    lattices = [Lattice(f, backend="cuda") for f in (problem.spatial_features, problem.bilateral_features)]
    norms = [1 / lattice.filter(torch.ones(lattice.n_points, 1, device="cuda")) for lattice in lattices]
    unary = problem.unary[0].T.contiguous().requires_grad_()
    median, fastest = timed(
        lambda: torch.autograd.grad(iterated(unary, lattices, norms).square().mean(), unary)
    )
    return {"text": f"{median:.2f} ms (min {fastest:.2f}), 500² L=21, lattices built before"}


def other_stream() -> Result:
    import torch

    problem = Problem([photograph(500)], 21)
    results = [problem.run(problem.field())]
    torch.cuda.synchronize()
    for _ in range(3):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            field = problem.field()
        other = torch.cuda.Stream()
        other.wait_stream(stream)
        with torch.cuda.stream(other):
            results.append(problem.run(field))
        torch.cuda.synchronize()
    return agrees(results, "runs on other streams")


def inside_autocast() -> Result:
    import torch

    problem = Problem([photograph(500)], 21)
    results = [problem.run(problem.field())]
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype=dtype):
            results.append(problem.run(problem.field()))
    return agrees(results, "runs inside autocast")


def does_not_wait() -> Result:
    """Queue iterations behind a kernel that takes a second: the host must be back before it ends."""
    import torch

    problem = Problem([photograph(500)], 21)
    field = problem.field()
    new = problem.field()
    problem.run(problem.field())  # leaves its memory for `new`: the driver may wait before it gives any
    problem.run(field)
    problem.run(field)
    torch.cuda.synchronize()
    took = []
    passed = True
    for one in (new, field):  # kernel by kernel, and as a graph
        torch.cuda._sleep(2_000_000_000)
        done = torch.cuda.Event()
        with no_synchronisation():
            start = time.perf_counter()
            problem.run(one)
            took.append(1e6 * (time.perf_counter() - start))
        done.record()
        passed = passed and not done.query()
        torch.cuda.synchronize()
    return {
        "text": f"host back after {took[0]:.0f} µs (kernel by kernel) and {took[1]:.0f} µs (graph)",
        "passed": passed,
    }


@contextlib.contextmanager
def no_synchronisation() -> Iterator[None]:
    """Let torch raise where one of its own operations would wait for the GPU."""
    import torch

    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def out_of_memory() -> Result:
    """Build and iterate with too little memory, then with enough."""
    import torch

    small = Problem([photograph(200)], 21)
    expected = small.run(small.field())
    large = Problem([photograph(1024)], 21)
    field = large.field()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    errors = []
    for work in (large.field, lambda: large.run(field)):
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (64 << 20)) / total)
        try:
            work()
            errors.append("none")
        except torch.cuda.OutOfMemoryError as error:
            errors.append(type(error).__name__)
        torch.cuda.set_per_process_memory_fraction(1.0)
        gc.collect()
        torch.cuda.empty_cache()
    left = torch.cuda.memory_allocated() - before
    works = torch.equal(small.run(small.field()), expected)
    works = works and bool(torch.isfinite(large.run(field)).all())
    return {
        "text": f"building and iterating: {', '.join(errors)}; {left} bytes left over; afterwards "
        f"{'the same bits as before' if works else 'WRONG'}",
        "passed": errors == ["OutOfMemoryError"] * 2 and left == 0 and works,
    }


def public_layer() -> Result:
    """Time `CrfRnn` itself, the way a caller uses it."""
    import importlib.util

    import torch

    if importlib.util.find_spec("pydantic") is None:
        return {"text": "not measured: pydantic, which CrfRnn's configuration needs, is not here"}
    from napari_crfasrnn.config import CrfConfig
    from napari_crfasrnn.crf import CrfRnn

    crf = CrfRnn(21, CrfConfig(theta_alpha=160.0, theta_beta=3.0, theta_gamma=3.0)).eval().cuda()
    image = torch.as_tensor(photograph(500)).permute(2, 0, 1)[None].cuda()
    unary = torch.randn(1, 21, *image.shape[2:], generator=torch.Generator().manual_seed(0)).cuda()
    with torch.inference_mode():
        median, fastest = timed(lambda: crf(unary, image, n_iterations=10))
        prepared = crf.prepare(image)
        again, _ = timed(lambda: crf(unary, prepared=prepared, n_iterations=10))
        images, unaries = image.repeat(8, 1, 1, 1), unary.repeat(8, 1, 1, 1)
        eight, _ = timed(lambda: crf(unaries, images, n_iterations=10), 5)
        joined = crf(unaries, images, n_iterations=10)[3]
        same = torch.equal(joined, crf(unary, image, n_iterations=10)[0])
    return {
        "text": f"500² L=21: {median:.2f} ms (min {fastest:.2f}) with prepare, {again:.2f} prepared before, "
        f"{eight:.2f} for 8 images; an image of the batch {'as' if same else 'NOT as'} alone",
        "passed": same,
    }


def machine() -> Result:
    """Name the GPU and measure its copy bandwidth."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    median, _ = timed(lambda: target.copy_(source), 10)
    small = torch.randn(1 << 22, device="cuda")
    small_target = torch.empty_like(small)
    in_cache, _ = timed(lambda: [small_target.copy_(small) for _ in range(50)], 10)
    nothing = torch.zeros(1, device="cuda")
    launches, _ = timed(lambda: [nothing.add_(1) for _ in range(200)], 10)
    return {
        "text": f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
        f"{properties.L2_cache_size / 2**20:.0f} MiB of L2; torch {torch.__version__}; copies "
        f"{8 * source.numel() / median / 1e9:.2f} TB/s of 1 GiB and "
        f"{50 * 8 * small.numel() / in_cache / 1e9:.2f} TB/s of 16 MiB, reads and writes together; "
        f"{1e3 * launches / 200:.1f} µs for one of many small operations of torch"
    }


def profile() -> Result:
    """Return the share of every kernel in one build and ten iterations, and how often the host waited."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    problem = Problem([photograph(500)], 21)
    problem.run(problem.field())
    torch.cuda.synchronize()
    with record(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        problem.run(problem.field())
        torch.cuda.synchronize()
    averages = found.key_averages()
    calls = [row for row in averages if row.key.startswith("cuda")]
    rows = sorted(averages, key=lambda row: -row.self_device_time_total)[:25]
    lines = [f"{row.self_device_time_total:9.1f} µs {row.count:5d} x  {row.key[:110]}" for row in rows]
    lines += [f"{row.self_cpu_time_total:9.1f} µs {row.count:5d} x  {row.key} (host)" for row in calls]
    return {"text": "\n".join(["", "```", *lines, "```"])}


# --- For the sanitizer ------------------------------------------------------------------------------------


def small() -> Result:
    """Touch every kernel once, in little time."""
    import numpy as np
    import torch

    from napari_crfasrnn._ext.cuda import CudaLattice

    rng = np.random.default_rng(0)
    for n_dims in (1, 2, 3, 4, 5, 6, 12):
        features = torch.from_numpy(rng.normal(scale=0.8, size=(500, n_dims)).astype(np.float32)).to("cuda")
        lattice = CudaLattice(features)
        for n_values in (1, 2, 3, 4, 70):
            values = torch.from_numpy(rng.random((500, n_values), np.float32)).to("cuda")
            lattice.filter(values, transpose=bool(n_values % 2))
    image = rng.uniform(0, 255, (24, 20, 3)).astype(np.float32)
    image[:12] = 9
    for n_labels in (1, 2, 5, 64):
        problem = Problem([image, image[::-1].copy()], n_labels)
        field = problem.field()
        for general in (False, True):
            out = problem.run(field, general=general)
        assert bool(torch.isfinite(out).all())
    torch.cuda.synchronize()
    return {"text": "done", "passed": True}


def _case(bar: str, images: Callable[[], Sequence[Any]], n_labels: int, **options: Any) -> Row:
    return Row(functools.partial(times, images, n_labels, **options), 60.0, bar)


def _one(size: int) -> Callable[[], Sequence[Any]]:
    return lambda: [photograph(size)]


# In the order in which they are taken: what matters most comes first.
ROWS: dict[str, Row] = {
    "machine": Row(machine, 90.0),
    "500² L=21": _case(
        "500² L=21, build and 10 iterations: ≤ 3 ms (aim 1.5)", _one(500), 21, bar_ms=3.0, compare=True
    ),
    "2048² L=21": _case("2048² L=21, build and 10 iterations: ≤ 40 ms", _one(2048), 21, bar_ms=40.0),
    "deterministic": Row(deterministic, bar="deterministic"),
    "backward": Row(backward, bar="forward and backward within 1e-4 of the CPU"),
    "no waiting": Row(does_not_wait, bar="no host synchronisation inside iterations"),
    "other streams": Row(other_stream, bar="works on a stream other than the default"),
    "autocast": Row(inside_autocast, bar="works inside torch autocast"),
    "out of memory": Row(out_of_memory, bar="out of memory is an error after which the process works"),
    "8 × 500² L=21": _case("a batch of 8 as one submission", lambda: batch(500), 21, compare=True),
    "128³ grey L=4 (d=3, 4)": _case("3-D", volume, 4, compare=True),
    **{f"500² L={n}": _case(f"L = 2 to 64: {n}", _one(500), n, compare=True) for n in (2, 5, 40, 64)},
    "graph": Row(graph_replays),
    "profile": Row(profile),
    "training": Row(training),
    "CrfRnn": Row(public_layer, 60.0),
    **{
        f"500² L=21, photograph {k + 1}": _case("", lambda k=k: photographs(500)[k : k + 1], 21, compare=True)
        for k in range(1, 5)
    },
    "500² L=1": _case("", _one(500), 1),
    "8 × 128² L=21": _case("", lambda: batch(128), 21),
    **{f"{size}² L=21": _case("", _one(size), 21) for size in (128, 256, 1024, 4096)},
    "500² six channels L=21 (d=8)": _case("", six_channels, 21),
}


def main() -> int:
    """Do the rows that are named."""
    for name in sys.argv[1:]:
        print(f"{START}{name}", flush=True)
        row = Row(small) if name == "small" else ROWS[name]
        start = time.perf_counter()
        result = row.work()
        result["seconds"] = round(time.perf_counter() - start, 1)
        print(f"{DONE}{json.dumps(result)}", flush=True)
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
