"""The CUDA backend on a GPU: what host loops cannot show (test_cuda_items.py shows the rest).

Where a GPU is, tests/ext/test_lattice.py runs its suite on "cuda", too. Needs neither a network nor Qt;
`python benchmarks/cuda.py` runs these tests on a machine that has only CUDA, torch, pytest and the sources.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import test_lattice as suite
import torch
from torch import Tensor

from napari_crfasrnn._ext import cuda
from napari_crfasrnn.lattice import Lattice, available_backends, build_config
from napari_crfasrnn.mean_field import MeanField

pytestmark = pytest.mark.skipif(cuda.why_not() is not None, reason=str(cuda.why_not()))

LONG = 2_000_000_000
"""Clock cycles that keep a GPU busy for about a second."""


def photograph(size: int) -> np.ndarray:
    """Something like one: smooth, with edges and noise, and a flat part with very long splat lists."""
    y, x = np.mgrid[:size, :size] / size
    image = np.stack([200 * x, 120 * y + 60 * (x > y), 90 + 80 * np.sin(9 * x * y)], axis=-1)
    image += np.random.default_rng(0).normal(scale=4, size=image.shape)
    image[: size // 3, : size // 3] = 12
    return np.clip(image, 0, 255).astype(np.uint8)


def problem(size: int, n_labels: int, device: str) -> tuple[MeanField, Tensor, Callable[[], Tensor]]:
    """Return a normalised mean field, its logits [L, N], and a function that runs ten iterations."""
    features = suite.image_features(photograph(size))
    lattices = [Lattice(torch.from_numpy(features[k]).to(device)) for k in ("spatial", "bilateral")]
    ones = torch.ones(size * size, 1, device=device)
    factors = [(None, 1.0 / lattice.filter(ones).flatten()) for lattice in lattices]
    field = MeanField(lattices[0], lattices[1], *factors)
    generator = torch.Generator().manual_seed(1)
    unary = (3 * torch.randn(n_labels, size * size, generator=generator)).to(device)
    eye = -torch.eye(n_labels, device=device)

    def run() -> Tensor:
        return field.run(
            unary,
            spatial_map=3 * eye,
            bilateral_map=5 * eye,
            unary_scale=1.0,
            output_scale=1.0,
            n_iterations=10,
        )

    return field, unary, run


def test_the_suite_of_all_backends_includes_this_one() -> None:
    assert "cuda" in available_backends()
    assert "cuda" in suite.BACKENDS
    assert str(build_config()["cuda_toolkit"]).startswith("CUDA ")
    assert Lattice(torch.zeros(3, 2, device="cuda")).backend == "cuda"


@pytest.mark.parametrize("n_values", [1, 2, 3, 21, 64, 70])
@pytest.mark.parametrize("n_dims", [1, 2, 3, 4, 5, 6, 9, 16])
def test_computes_the_bits_of_the_host_loops(n_dims: int, n_values: int) -> None:
    features = suite.cloud(700, n_dims, spread=0.7)
    values = suite.values_for(features, n_values)
    own = Lattice(features, backend="cuda")
    results = [own.filter(values, transpose=t) for t in (False, True)]
    with cuda.host_loops():
        loops = Lattice(features, backend="cuda")
        assert loops.n_vertices == own.n_vertices
        for transpose, result in zip((False, True), results, strict=True):
            np.testing.assert_array_equal(result, loops.filter(values, transpose=transpose))


@pytest.mark.parametrize("n_labels", [1, 2, 5, 21, 64])
def test_mean_field_computes_the_bits_of_the_host_loops(n_labels: int) -> None:
    _, _, run = problem(40, n_labels, "cuda")
    result = run().cpu()
    with cuda.host_loops():
        _, _, run_loops = problem_in_loops(40, n_labels)
        assert torch.equal(result, run_loops())


def problem_in_loops(size: int, n_labels: int) -> tuple[MeanField, Tensor, Callable[[], Tensor]]:
    """Build `problem` on CPU tensors, where "auto" would take the CPU backend."""
    features = suite.image_features(photograph(size))
    lattices = [Lattice(features[k], backend="cuda") for k in ("spatial", "bilateral")]
    ones = torch.ones(size * size, 1)
    factors = [(None, 1.0 / lattice.filter(ones).flatten()) for lattice in lattices]
    field = MeanField(lattices[0], lattices[1], *factors)
    unary = 3 * torch.randn(n_labels, size * size, generator=torch.Generator().manual_seed(1))
    eye = -torch.eye(n_labels)
    return (
        field,
        unary,
        lambda: field.run(
            unary,
            spatial_map=3 * eye,
            bilateral_map=5 * eye,
            unary_scale=1.0,
            output_scale=1.0,
            n_iterations=10,
        ),
    )


@pytest.mark.parametrize("n_labels", [2, 21])
def test_agrees_with_the_cpu_on_an_image(n_labels: int) -> None:
    results = {device: problem(160, n_labels, device)[2]().cpu().softmax(0) for device in ("cpu", "cuda")}
    error = (results["cpu"] - results["cuda"]).abs()
    # The mean field amplifies rounding where a pixel is undecided; elsewhere it is 1e-6.
    assert float(error.quantile(0.9999) if error.numel() < 1 << 24 else error.mean()) <= 1e-4
    assert float(error.max()) <= 1e-3


def test_gradients_agree_with_the_cpu() -> None:
    features = torch.from_numpy(suite.image_features(photograph(64))["bilateral"])
    values, cotangent = torch.randn(64 * 64, 21), torch.randn(64 * 64, 21)
    gradients = []
    for device in ("cpu", "cuda"):
        leaf = values.to(device).requires_grad_()
        out = Lattice(features.to(device)).filter(leaf)
        gradients.append(torch.autograd.grad(out, leaf, cotangent.to(device))[0].cpu())
    suite.assert_close(gradients[1].numpy(), gradients[0].numpy(), rtol=1e-5)


def test_every_run_gives_the_same_bits() -> None:
    results = []
    for _ in range(3):
        features = torch.from_numpy(suite.image_features(photograph(256))["bilateral"]).cuda()
        values = torch.randn(256 * 256, 21, generator=torch.Generator().manual_seed(2)).cuda()
        results.append(Lattice(features).filter(values))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_recorded_graph_gives_the_same_bits() -> None:
    field, unary, run = problem(96, 21, "cuda")
    results = [run() for _ in range(4)]
    assert field._native.has_graph
    assert all(torch.equal(results[0], result) for result in results[1:])
    unary.mul_(0.5)
    changed = run()
    assert not torch.equal(changed, results[0])
    unary.mul_(2)
    assert torch.equal(run(), results[0])


def test_filter_and_iterations_do_not_wait_for_the_gpu() -> None:
    field, unary, run = problem(64, 5, "cuda")
    run(), run()
    native = field._native
    eye = torch.eye(5, device="cuda")
    lattice = Lattice(torch.rand(1000, 3, device="cuda"))
    values = torch.rand(1000, 7, device="cuda")
    lattice.filter(values)
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda._sleep(LONG)
    lattice.filter(values)
    native.run(unary[None], spatial=eye, bilateral=eye, unary_scale=1.0, output_scale=1.0, n_iterations=10)
    done.record()
    assert not done.query(), "the calls returned only after the GPU had finished what was queued before"
    torch.cuda.synchronize()


def test_works_on_other_streams() -> None:
    features = torch.from_numpy(suite.image_features(photograph(128))["bilateral"]).cuda()
    values = torch.randn(128 * 128, 5, device="cuda")
    expected = Lattice(features).filter(values)
    torch.cuda.synchronize()
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    for _ in range(5):
        with torch.cuda.stream(first):
            torch.cuda._sleep(LONG // 20)
            lattice = Lattice(features)
        # Not a word about the first stream: the lattice knows what it must wait for.
        with torch.cuda.stream(second):
            torch.cuda._sleep(LONG // 20)
            out = lattice.filter(values)
        # Its memory is the first stream's to hand out again, but not while the second one reads it.
        sizes = [block.numel() for block in lattice._native.blocks]
        del lattice
        take_and_spoil(sizes, first)
        assert torch.equal(out, expected)


def take_and_spoil(sizes: list[int], stream: torch.cuda.Stream) -> None:
    """Let a stream have memory of these sizes again, in bytes, and write other values over it."""
    with torch.cuda.stream(stream):
        spoilt = [torch.empty(size, dtype=torch.uint8, device="cuda").fill_(255) for size in sizes]
    torch.cuda.synchronize()
    del spoilt


def test_a_mean_field_works_on_a_stream_that_did_not_build_it() -> None:
    eye = -torch.eye(5, device="cuda")

    def iterate(field: MeanField, unary: Tensor) -> Tensor:  # without the wait that looks for NaN
        maps = {"spatial": eye, "bilateral": eye}
        return field._native.run(unary[None], **maps, unary_scale=1.0, output_scale=1.0, n_iterations=5)[0]

    field, unary, _ = problem(96, 5, "cuda")
    expected = iterate(field, unary)
    torch.cuda.synchronize()
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    for _ in range(3):
        with torch.cuda.stream(first):
            field = problem(96, 5, "cuda")[0]
            native = field._native
            factors = [one for one in native._factors.values() if one is not None]
            sizes = [t.nbytes for t in (*native._spatial.blocks, *native._bilateral.blocks, *factors)]
        # As with any tensor of torch, the caller says when the factors that he made are ready.
        second.wait_stream(first)
        with torch.cuda.stream(second):
            torch.cuda._sleep(LONG // 20)
            out = iterate(field, unary)
        del field, native, factors
        take_and_spoil(sizes, first)
        assert torch.equal(out, expected)


def test_a_lattice_cannot_be_built_inside_a_capture() -> None:
    features = torch.rand(50, 2, device="cuda")
    expected = Lattice(features).n_vertices
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), pytest.raises(RuntimeError, match="cannot be built while a CUDA graph"):
        Lattice(features)
    assert Lattice(features).n_vertices == expected


def test_can_be_captured_in_a_graph_of_the_caller() -> None:
    field, unary, run = problem(64, 4, "cuda")
    lattice = Lattice(torch.rand(500, 3, device="cuda"))
    values = torch.rand(500, 6, device="cuda")
    eye = -torch.eye(4, device="cuda")

    def work() -> tuple[Tensor, Tensor]:
        refined = field._native.run(
            unary[None],
            spatial=3 * eye,
            bilateral=5 * eye,
            unary_scale=1.0,
            output_scale=1.0,
            n_iterations=10,
        )
        return lattice.filter(values), refined[0]

    warm_up = torch.cuda.Stream()
    with torch.cuda.stream(warm_up):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        filtered, refined = work()
    values.mul_(2)
    unary.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(filtered, lattice.filter(values))
    assert torch.equal(refined, run())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    features = torch.rand(400, 4, device="cuda")
    values = torch.rand(400, 9, device="cuda", requires_grad=True)
    expected = Lattice(features).filter(values)
    with torch.autocast("cuda", dtype=dtype):
        out = Lattice(features).filter(values)
        assert out.dtype == torch.float32
        assert torch.equal(out, expected)
        (gradient,) = torch.autograd.grad(out.sum(), values)
        product = values @ torch.eye(9, device="cuda")
        assert product.dtype == dtype
        filtered = Lattice(features).filter(product)
    assert gradient.dtype == torch.float32
    assert filtered.dtype == torch.float32
    assert torch.equal(filtered, Lattice(features).filter(product.float()))


def test_out_of_memory_is_an_error_one_can_catch() -> None:
    features = torch.rand(1 << 20, 5, device="cuda")
    lattice = Lattice(features[:2000])
    values = torch.rand(2000, 3, device="cuda")
    expected = lattice.filter(values)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    used = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((used + (64 << 20)) / total)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            Lattice(features)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.equal(lattice.filter(values), expected)
    assert Lattice(features).filter(torch.ones(1 << 20, 1, device="cuda")).isfinite().all()


def test_arrays_of_the_cpu_come_back_to_it() -> None:
    features = suite.cloud(300, 3)
    values = suite.values_for(features, 4)
    lattice = Lattice(features, backend="cuda")
    expected = Lattice(features, backend="cpu").filter(values)
    suite.assert_close(lattice.filter(values), expected)
    out = lattice.filter(torch.from_numpy(values))
    assert out.device.type == "cpu"
    suite.assert_close(out.numpy(), expected)
    on_cpu = Lattice(torch.from_numpy(features).cuda(), backend="cpu").filter(torch.from_numpy(values).cuda())
    assert on_cpu.is_cuda
    suite.assert_close(on_cpu.cpu().numpy(), expected)


def test_a_mean_field_takes_factors_and_logits_of_the_cpu() -> None:
    features = suite.image_features(photograph(40))
    unary = 3 * torch.randn(5, 1600, generator=torch.Generator().manual_seed(1))
    eye = -torch.eye(5)
    results = []
    for backend in ("cpu", "cuda"):
        lattices = [Lattice(features[k], backend=backend) for k in ("spatial", "bilateral")]
        factors = [(None, 1.0 / lattice.row_sums().flatten()) for lattice in lattices]
        assert not any(after.is_cuda for _, after in factors)
        maps = {"spatial_map": 3 * eye, "bilateral_map": 5 * eye}
        field = MeanField(lattices[0], lattices[1], *factors)
        results.append(field.run(unary, **maps, unary_scale=1.0, output_scale=1.0, n_iterations=5))
        assert results[-1].device.type == "cpu"
    assert float((results[0].softmax(0) - results[1].softmax(0)).abs().max()) <= 1e-4


def test_millions_of_equal_points() -> None:
    # One vertex with all points: 2^21 entries over 2^15 segments.
    features = torch.full((1 << 21, 3), 0.2, device="cuda")
    values = torch.rand(1 << 21, 2, device="cuda")
    lattice = Lattice(features)
    assert lattice.n_vertices == 4
    alone = Lattice(features[:1]).filter(torch.ones(1, 1, device="cuda")).item()
    expected = alone * values.double().sum(0)
    torch.testing.assert_close(lattice.filter(values)[0].double(), expected, rtol=1e-5, atol=0)
