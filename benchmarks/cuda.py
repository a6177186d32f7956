"""Check and measure the CUDA backend on a machine with a GPU: everything, in one command.

    python benchmarks/cuda.py              # builds, tests, sanitises, measures; about 6 minutes
    python benchmarks/cuda.py --measure    # only the tables, with the package as it is installed

Needs CUDA's compiler, CMake, nanobind, pytest, hypothesis, scikit-image and torch, but no network and
no installed package: it builds the sources of this checkout in build/cuda-bench and uses them from there.
Writes benchmarks/results/cuda_<gpu>.md. Each part has a time limit of its own and is reported as failed
when it does not hold it, so that the rest is still measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "cuda-bench"
RESULTS = ROOT / "benchmarks" / "results"

BARS_MS = {"500² L=21": 3.0, "2048² L=21": 40.0}
"""What must be reached on an H200 for build and ten iterations, in milliseconds."""


# --- Build, test, sanitise: each in a process of its own ----------------------------------------------


def build() -> None:
    """Compile the sources and lay the package out in WORK/package."""
    package = WORK / "package" / "napari_crfasrnn"
    shutil.rmtree(package, ignore_errors=True)
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "src" / "napari_crfasrnn", package, ignore=ignore)
    nanobind = subprocess.run(
        [sys.executable, "-m", "nanobind", "--cmake_dir"], capture_output=True, text=True, check=True
    )
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dnanobind_DIR={nanobind.stdout.strip()}"]
    cmake = ["cmake", "-S", str(ROOT), "-B", str(WORK / "cmake"), "-DCRFASRNN_CUDA=on", *options]
    subprocess.run(cmake, check=True)
    targets = ["_lattice", "_lattice_items", "_lattice_cuda"]
    jobs = str(os.cpu_count() or 2)
    subprocess.run(
        ["cmake", "--build", str(WORK / "cmake"), "-j", jobs, "--target", *targets], check=True, timeout=240
    )
    for target in targets:
        (module,) = (WORK / "cmake").glob(f"{target}.*so")
        shutil.copy(module, package / "_ext")


def environment() -> dict[str, str]:
    """Return the environment in which Python finds the package that `build` made."""
    return {**os.environ, "PYTHONPATH": str(WORK / "package"), "PYTHONUNBUFFERED": "1"}


def run_tests(log: Path) -> str:
    """Run the tests of the lattice on this GPU; return pytest's closing line."""
    # Without the project's pytest settings: they name plugins that a bare machine lacks.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        os.devnull,
        f"--rootdir={ROOT}",
        "-p",
        "no:cacheprovider",
    ]
    files = [str(ROOT / "tests" / "ext" / name) for name in ("test_cuda.py", "test_lattice.py")]
    chosen = ["-k", "test_cuda or cuda", *files]
    with log.open("w") as stream:
        subprocess.run(
            [*command, *chosen],
            env=environment(),
            stdout=stream,
            stderr=subprocess.STDOUT,
            timeout=240,
            check=False,
        )
    return log.read_text().strip().splitlines()[-1]


def sanitise(tool: str, log: Path) -> str:
    """Run a small mean field under compute-sanitizer; return its closing line."""
    if shutil.which("compute-sanitizer") is None:
        return "compute-sanitizer is not here"
    command = ["compute-sanitizer", "--tool", tool, sys.executable, __file__, "--small"]
    # Without torch's cache every block is one allocation, whose ends the sanitizer knows.
    env = {**environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with log.open("w") as stream:
        subprocess.run(command, env=env, stdout=stream, stderr=subprocess.STDOUT, timeout=75, check=False)
    return log.read_text().strip().splitlines()[-1]


# --- What is measured: in a process that imports torch ------------------------------------------------


def photographs(size: int) -> dict[str, object]:
    """Return the real photographs that scikit-image ships, resized to size x size."""
    import numpy as np
    from skimage import data
    from skimage.transform import resize

    found = {}
    for name in ("astronaut", "coffee", "chelsea", "rocket", "immunohistochemistry"):
        try:
            image = getattr(data, name)()
        except (AttributeError, OSError, ModuleNotFoundError):  # not in this version, or not inside the wheel
            continue
        found[name] = resize(image[..., :3], (size, size), preserve_range=True, anti_aliasing=True).astype(
            np.float32
        )
    return found


class Problem:
    """Dense CRFs of a batch of images: built and iterated as one."""

    def __init__(self, images, n_labels: int, device: str, theta=(160.0, 3.0, 3.0)) -> None:
        import torch

        stack = torch.stack([torch.as_tensor(image) for image in images]).to(device)  # [B, *S, C]
        self.n_images, *space, _ = stack.shape
        axes = torch.meshgrid(
            *[torch.arange(s, device=device, dtype=torch.float32) for s in space], indexing="ij"
        )
        position = torch.stack([axis.flatten() for axis in reversed(axes)], dim=1).repeat(self.n_images, 1)
        self.spatial_features = position / theta[2]
        colour = stack.flatten(0, -2)
        self.bilateral_features = torch.cat([position / theta[0], colour / theta[1]], dim=1)
        generator = torch.Generator().manual_seed(0)
        # Noise without structure: every label lives everywhere, and more pixels are undecided than in a
        # real image, which is the hard case for the comparison with the CPU.
        n = position.shape[0] // self.n_images
        unary = torch.randn(self.n_images, n_labels, n, generator=generator)
        self.unary = (2.0 * unary).to(device)
        self.map = -torch.eye(n_labels, device=device)
        self.device = device

    def kernel(self, features):
        """Return a lattice and its normalisation."""
        import torch

        from napari_crfasrnn._ext.cuda import CudaLattice

        lattice = CudaLattice(features.contiguous(), n_groups=self.n_images)
        return lattice, lattice.filter(torch.ones_like(features[:, :1])).reciprocal()

    def field(self, spatial=None):
        """Build what an image needs; the spatial kernel is the same for all of a size and may be given."""
        from napari_crfasrnn._ext.cuda import CudaMeanField

        spatial, spatial_after = spatial or self.kernel(self.spatial_features)
        bilateral, bilateral_after = self.kernel(self.bilateral_features)
        return CudaMeanField(spatial, bilateral, spatial_after=spatial_after, bilateral_after=bilateral_after)

    def run(self, field, general: bool = False):
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

    def on_cpu(self):
        """Return the CPU backend's logits of the first image."""
        import torch

        from napari_crfasrnn.lattice import Lattice
        from napari_crfasrnn.mean_field import MeanField

        n = self.unary.shape[2]
        lattices = [Lattice(f[:n].cpu()) for f in (self.spatial_features, self.bilateral_features)]
        factors = [(None, 1 / lattice.filter(torch.ones(n, 1)).flatten()) for lattice in lattices]
        maps = self.map.cpu()
        return MeanField(*lattices, *factors).run(
            self.unary[0].cpu(),
            spatial_map=3 * maps,
            bilateral_map=5 * maps,
            unary_scale=1.0,
            output_scale=1.0,
            n_iterations=10,
        )


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


def measure_one(label: str, images, n_labels: int, compare: bool) -> list[str]:
    """Return one row of the table."""
    import torch

    problem = Problem(images, n_labels, "cuda")
    repeats = 15 if problem.unary.numel() < 1 << 27 else 5
    spatial = problem.kernel(problem.spatial_features)
    field = problem.field(spatial)
    problem.run(field)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    total, total_min = timed(lambda: problem.run(problem.field()), repeats)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    cached, _ = timed(lambda: problem.run(problem.field(spatial)), repeats)
    iterations, _ = timed(lambda: problem.run(field), repeats)
    general, _ = timed(lambda: problem.run(field, general=True), repeats)
    m = field._bilateral.n_vertices / problem.bilateral_features.shape[0]
    error = ""
    if compare:
        ours, theirs = problem.run(field)[0].cpu().softmax(0), problem.on_cpu().softmax(0)
        gap = (ours - theirs).abs().flatten()
        flips = float((ours.argmax(0) != theirs.argmax(0)).float().mean())
        top = float(gap.kthvalue(max(1, int(0.9999 * gap.numel()))).values)
        error = f"{top:.1e} / {float(gap.max()):.1e} / {flips:.1e}"
    bar = BARS_MS.get(label)
    verdict = "" if bar is None else f"{'met' if total <= bar else 'MISSED'} (≤ {bar:g})"
    figures = [f"{x:.2f}" for x in (total, total_min, cached, iterations, general)]
    return [label, f"{m:.2f}", *figures, f"{peak:.0f}", error, verdict]


def measure_training(size: int, image) -> str:
    """Time forward and backward of five iterations through autograd."""
    import torch

    from napari_crfasrnn.lattice import Lattice

    problem = Problem([image], 21, "cuda")
    lattices = [Lattice(f) for f in (problem.spatial_features, problem.bilateral_features)]
    norms = [1 / lattice.filter(torch.ones(size * size, 1, device="cuda")) for lattice in lattices]
    unary = problem.unary[0].T.contiguous().requires_grad_()

    def step() -> None:
        state = unary
        for _ in range(5):
            q = state.softmax(1)
            messages = [lattice.filter(q) * norm for lattice, norm in zip(lattices, norms, strict=True)]
            state = unary + 3 * messages[0] + 5 * messages[1]
        torch.autograd.grad(state.square().mean(), unary)

    median, fastest = timed(step)
    what = f"forward + backward of 5 iterations, {size}² L=21, lattices built before"
    return f"{what}: {median:.2f} ms (min {fastest:.2f})"


def kernel_profile(image) -> str:
    """Return the share of every kernel in one build and ten iterations."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    problem = Problem([image], 21, "cuda")
    problem.run(problem.field())
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        problem.run(problem.field())
        torch.cuda.synchronize()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)[:25]
    lines = [f"{row.self_device_time_total:9.1f} us {row.count:5d} x  {row.key[:100]}" for row in rows]
    return "\n".join(lines)


def measure() -> dict[str, object]:
    """Measure everything; return the parts of the report."""
    import numpy as np
    import torch

    table: list[list[str]] = []
    failures: list[str] = []

    def row(label: str, images, n_labels: int, compare: bool = False) -> None:
        try:
            table.append(measure_one(label, images, n_labels, compare))
        except RuntimeError as error:  # out of memory, too: say so and go on
            failures.append(f"{label}: {type(error).__name__}: {str(error).splitlines()[0]}")
        torch.cuda.empty_cache()

    photos = photographs(500)
    astronaut = photos["astronaut"]
    for name, image in photos.items():
        row("500² L=21" if name == "astronaut" else f"500² L=21 {name}", [image], 21, compare=True)
    for n_labels in (1, 2, 5, 40, 64):
        row(f"500² L={n_labels}", [astronaut], n_labels, compare=n_labels in (2, 64))
    row("8 × 500² L=21", (list(photos.values()) * 8)[:8], 21)
    row("8 × 128² L=21", (list(photographs(128).values()) * 8)[:8], 21)
    for size in (128, 256, 1024, 2048, 4096):
        row(f"{size}² L=21", [photographs(size)["astronaut"]], 21)
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[:128, :128, :128].astype(np.float32) / 128
    volume = 255 * np.clip(np.sin(7 * x * y + 5 * z) ** 2 + rng.normal(scale=0.03, size=x.shape), 0, 1)
    row("128³ grey L=4 (d=3, 4)", [volume[..., None].astype(np.float32)], 4)
    many = np.concatenate([astronaut, photos["coffee"]], axis=2)
    row("500² six channels L=21 (d=8)", [many], 21)
    return {
        "gpu": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "table": table,
        "failures": failures,
        "training": guarded(lambda: measure_training(500, astronaut)),
        "profile": guarded(lambda: kernel_profile(astronaut)),
    }


def guarded(work: Callable[[], str]) -> str:
    """Return what work returns, or its error as text: one part less is no reason to lose the others."""
    try:
        return work()
    except (RuntimeError, AttributeError, AssertionError) as error:
        return f"FAILED: {type(error).__name__}: {error}"


def small() -> None:
    """Touch every kernel once, in little time: for the sanitizer."""
    import numpy as np
    import torch

    from napari_crfasrnn._ext.cuda import CudaLattice

    rng = np.random.default_rng(0)
    for n_dims in (1, 2, 3, 4, 5, 6, 12):
        features = torch.from_numpy(rng.normal(scale=0.8, size=(500, n_dims)).astype(np.float32)).cuda()
        lattice = CudaLattice(features)
        for n_values in (1, 2, 3, 4, 70):
            lattice.filter(torch.rand(500, n_values, device="cuda"), transpose=bool(n_values % 2))
    image = rng.uniform(0, 255, (24, 20, 3)).astype(np.float32)
    image[:12] = 9
    for n_labels in (1, 2, 5):
        problem = Problem([image, image[::-1].copy()], n_labels, "cuda")
        field = problem.field()
        for general in (False, True):
            problem.run(field, general)
    torch.cuda.synchronize()


# --- The report ----------------------------------------------------------------------------------------


def report(steps: dict[str, str], measured: dict[str, object] | None) -> str:
    """Return the report in Markdown."""
    lines = ["# The lattice on a GPU", ""]
    lines += [
        f"`python benchmarks/cuda.py`, {datetime.date.today()}, {platform.machine()}, "
        f"Python {platform.python_version()}"
    ]
    if measured is not None:
        lines += [f"GPU: {measured['gpu']}; torch {measured['torch']}"]
    lines += [
        "",
        "| step | result |",
        "|---|---|",
        *[f"| {name} | {text} |" for name, text in steps.items()],
        "",
    ]
    if measured is None:
        return "\n".join(lines)
    lines += [
        "Milliseconds of wall time with the GPU's work, median of 15 (5 for the largest), features on the",
        "GPU before, theta 160/3/3, ten iterations. *all*: both lattices, norms and iterations;",
        "*image*: with the spatial lattice kept from an image of the same size; *iterations*: both kept;",
        "*general*: the same with full matrices. Error: |ΔQ| against the CPU, 99.99th percentile / maximum /",
        "share of pixels with another argmax.",
        "",
        "| case | M/N | all | all, min | image | iterations | general | peak MiB | error | bar |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(row) + " |" for row in measured["table"]]  # type: ignore[attr-defined]
    lines += ["", *[f"Failed: {failure}" for failure in measured["failures"]]]  # type: ignore[attr-defined]
    lines += [f"Training: {measured['training']}", "", "Kernels of 500² L=21, build and ten iterations:", ""]
    return "\n".join([*lines, "```", str(measured["profile"]), "```", ""])


def attempt(name: str, steps: dict[str, str], work: Callable[[], str | None]) -> bool:
    """Do one step, note how it went and how long it took."""
    start = time.perf_counter()
    try:
        outcome = work() or "done"
        worked = True
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        outcome, worked = f"FAILED: {type(error).__name__}: {error}", False
    steps[name] = f"{outcome} ({time.perf_counter() - start:.0f} s)"
    print(f"{name}: {steps[name]}", flush=True)
    return worked


def main() -> int:
    """Run the steps and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="only measure, with the installed package")
    parser.add_argument("--measure-to", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.small:
        small()
        return 0
    if arguments.measure_to is not None:
        arguments.measure_to.write_text(json.dumps(measure()))
        return 0
    steps: dict[str, str] = {}
    RESULTS.mkdir(exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    env = dict(os.environ)
    if not arguments.measure:
        if not attempt("build", steps, build):
            (RESULTS / "cuda_failed.md").write_text(report(steps, None))
            return 1
        env = environment()
    found = WORK / "measured.json"
    found.unlink(missing_ok=True)

    def measure_apart() -> None:
        subprocess.run(
            [sys.executable, __file__, "--measure-to", str(found)], env=env, check=True, timeout=200
        )

    # The figures first: they are what the machine was asked for.
    attempt("measure", steps, measure_apart)
    if not arguments.measure:
        attempt("tests", steps, lambda: run_tests(WORK / "tests.log"))
        for tool in ("memcheck", "racecheck"):
            attempt(f"compute-sanitizer {tool}", steps, lambda t=tool: sanitise(t, WORK / f"{t}.log"))
    measured = json.loads(found.read_text()) if found.exists() else None
    gpu = "failed" if measured is None else str(measured["gpu"]).lower().replace(" ", "_")
    path = RESULTS / f"cuda_{gpu}.md"
    path.write_text(report(steps, measured))
    print(path.read_text())
    return 0 if measured is not None else 1


if __name__ == "__main__":
    sys.exit(main())
