"""Measure mean-field inference as a ratio to pydensecrf2 in the same process.

    python benchmarks/lattice.py [--quick] [--rounds N] [--write NAME]

Both do the same work: build both kernels of an image (theta 160, 3 and 3, normalised after), then
mean-field iterations with Potts compatibility. They take turns, so that whatever else the machine
does hits both; a ratio is the median over rounds of peer time / our time. One thread is measured in
CPU time of that thread, two threads in wall-clock time. Photographs are those that scikit-image
carries; unaries are smooth random scores with every label somewhere on top.

`--write NAME` puts the tables into benchmarks/results/NAME.md with the command, date and processor.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydensecrf.densecrf as peer
import skimage.data
import torch
from numpy.typing import NDArray
from skimage.transform import resize
from torch import Tensor

from napari_crfasrnn.config import CrfConfig
from napari_crfasrnn.crf import CrfRnn
from napari_crfasrnn.lattice import Lattice, build_config, set_num_threads
from napari_crfasrnn.mean_field import MarginalDtype

Image = NDArray[np.uint8]
Clock = Callable[[], float]
MARGINAL_DTYPES: tuple[MarginalDtype, ...] = ("float32", "uint16")
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "motorcycle", "retina")


@dataclass
class Report:
    """Tables as Markdown, printed while they grow."""

    lines: list[str] = field(default_factory=list)

    def say(self, line: str = "") -> None:
        self.lines.append(line)
        print(line, flush=True)

    def table(self, title: str, *columns: str) -> None:
        self.say()
        self.say(f"## {title}")
        self.say()
        self.row(*columns)
        self.row(*("---",) * len(columns))

    def row(self, *cells: str) -> None:
        self.say(f"| {' | '.join(cells)} |")


def photograph(name: str, height: int, width: int) -> Image:
    """Cut the photograph's middle square and bring it to size (bigger ones are not enlarged much)."""
    loaded = skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
    side = min(loaded.shape[:2])
    top, left = (loaded.shape[0] - side) // 2, (loaded.shape[1] - side) // 2
    square = loaded[top : top + side, left : left + side, :3]
    if square.shape[:2] != (height, width):
        square = resize(square, (height, width), order=1, preserve_range=True, anti_aliasing=side > height)
    return np.ascontiguousarray(np.rint(square).astype(np.uint8))


def scores(n_labels: int, height: int, width: int, seed: int = 0) -> Tensor:  # [1, L, H, W]
    generator = torch.Generator().manual_seed(seed)
    coarse = 5.0 * torch.randn(1, n_labels, max(2, height // 40), max(2, width // 40), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return smooth + torch.randn(smooth.shape, generator=generator)


@dataclass
class Ours:
    image: Tensor  # [1, C, H, W]
    unary: Tensor  # [1, L, H, W]
    crf: CrfRnn

    @classmethod
    def of(cls, image: Image, unary: Tensor) -> Ours:
        planes = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()
        return cls(planes, unary, CrfRnn(unary.shape[1]).eval())

    def build(self) -> None:
        self.prepared = self.crf.prepare(self.image)
        assert self.prepared.fused is not None

    def iterate(self, n_iterations: int = 10) -> Tensor:
        with torch.inference_mode():
            return self.crf(self.unary, prepared=self.prepared, n_iterations=n_iterations)


@dataclass
class Peer:
    image: Image
    energy: NDArray[np.float32]  # [L, N]

    @classmethod
    def of(cls, image: Image, unary: Tensor) -> Peer:
        return cls(image, np.ascontiguousarray(-unary[0].flatten(1).numpy()))

    def build(self) -> None:
        height, width = self.image.shape[:2]
        self.crf = peer.DenseCRF2D(width, height, len(self.energy))
        self.crf.setUnaryEnergy(self.energy)
        after = peer.NORMALIZE_AFTER
        self.crf.addPairwiseGaussian(sxy=3, compat=3, normalization=after)
        self.crf.addPairwiseBilateral(sxy=160, srgb=3, rgbim=self.image, compat=5, normalization=after)

    def iterate(self, n_iterations: int = 10) -> NDArray[np.float32]:
        return np.asarray(self.crf.inference(n_iterations))


@dataclass
class Times:
    build: list[float] = field(default_factory=list)
    iterate: list[float] = field(default_factory=list)


def take_turns(
    image: Image, unary: Tensor, rounds: int, clock: Clock, n_iterations: int = 10
) -> tuple[Times, Times]:
    ours, theirs = Ours.of(image, unary), Peer.of(image, unary)
    times = (Times(), Times())
    ours.build()  # the first call touches fresh memory
    ours.iterate(1)
    for _ in range(rounds):
        for contender, own in zip((ours, theirs), times, strict=True):
            begin = clock()
            contender.build()
            middle = clock()
            contender.iterate(n_iterations)
            own.build.append(middle - begin)
            own.iterate.append(clock() - middle)
    return times


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(t / o for o, t in zip(ours, theirs, strict=True))


def both(times: Times) -> list[float]:
    return [build + iterate for build, iterate in zip(times.build, times.iterate, strict=True)]


def milliseconds(values: list[float]) -> str:
    return f"{1e3 * min(values):.0f}"


def compare(report: Report, rounds: int) -> None:
    report.table(
        "500 x 500, 21 labels, 10 iterations",
        "photograph", "ms build", "ms iterations", "peer", "peer", "ratio build", "ratio iterations",
        "ratio both, 1 thread", "ratio both, 2 threads (wall)",
    )  # fmt: skip
    ratios: list[tuple[float, ...]] = []
    for name in PHOTOGRAPHS:
        image, unary = photograph(name, 500, 500), scores(21, 500, 500)
        set_num_threads(1)
        ours, theirs = take_turns(image, unary, rounds, time.thread_time)
        set_num_threads(2)
        ours_2, theirs_2 = take_turns(image, unary, rounds, time.perf_counter)
        ratios.append(
            (
                ratio(ours.build, theirs.build),
                ratio(ours.iterate, theirs.iterate),
                ratio(both(ours), both(theirs)),
                ratio(both(ours_2), both(theirs_2)),
            )
        )
        report.row(
            name,
            milliseconds(ours.build),
            milliseconds(ours.iterate),
            milliseconds(theirs.build),
            milliseconds(theirs.iterate),
            *(f"{value:.1f}" for value in ratios[-1]),
        )
    medians = (statistics.median(column) for column in zip(*ratios, strict=True))
    report.row("**median**", "", "", "", "", *(f"**{value:.1f}**" for value in medians))
    set_num_threads(1)


def compare_labels(report: Report, rounds: int) -> None:
    report.table("Iterations only, 500 x 500, 1 thread", "labels", "photograph", "ms", "peer", "ratio")
    for n_labels, n_iterations in ((2, 10), (5, 10), (64, 3)):
        for name in ("astronaut", "coffee"):
            image, unary = photograph(name, 500, 500), scores(n_labels, 500, 500)
            ours, theirs = take_turns(image, unary, rounds, time.thread_time, n_iterations)
            report.row(
                str(n_labels),
                name,
                f"{milliseconds(ours.iterate)} ({n_iterations} it.)",
                milliseconds(theirs.iterate),
                f"{ratio(ours.iterate, theirs.iterate):.1f}",
            )


def compare_matrices(report: Report, rounds: int) -> None:
    report.table(
        "Learned matrices, 500 x 500, 21 labels, 1 thread", "weights", "ms, 10 iterations", "cost over Potts"
    )
    ours = Ours.of(photograph("astronaut", 500, 500), scores(21, 500, 500))
    ours.build()
    generator = torch.Generator().manual_seed(0)
    times: dict[str, list[float]] = {"Potts": [], "a weight for each label": [], "full matrices": []}
    layers = {name: CrfRnn(21).eval() for name in times}
    with torch.no_grad():
        layers["a weight for each label"].bilateral_weights.diagonal().add_(
            torch.rand(21, generator=generator)
        )
        layers["a weight for each label"].spatial_weights.diagonal().add_(torch.rand(21, generator=generator))
        layers["full matrices"].compatibility.add_(0.1 * torch.randn(21, 21, generator=generator))
    for _ in range(rounds):
        for name, layer in layers.items():
            ours.crf = layer
            begin = time.thread_time()
            ours.iterate()
            times[name].append(time.thread_time() - begin)
    for name, values in times.items():
        report.row(name, milliseconds(values), f"{ratio(times['Potts'], values):.2f}")


def compare_sizes(report: Report, rounds: int) -> None:
    report.table(
        "Large images, 21 labels, build and 10 iterations, 1 thread",
        "size", "photograph", "ms", "peer", "ratio",
    )  # fmt: skip
    for side, name in ((1024, "retina"), (1024, "astronaut"), (2048, "retina")):
        image, unary = photograph(name, side, side), scores(21, side, side)
        ours, theirs = take_turns(image, unary, max(1, rounds // 3), time.thread_time)
        report.row(
            f"{side} x {side}",
            name,
            milliseconds(both(ours)),
            milliseconds(both(theirs)),
            f"{ratio(both(ours), both(theirs)):.1f}",
        )


def compare_marginals(report: Report, rounds: int) -> None:
    report.table(
        "Marginals in 16 bits, 500 x 500, iterations only, 1 thread",
        "photograph", "labels", "iterations", "ms float32", "ms uint16", "float32 / uint16",
    )  # fmt: skip
    for name in ("astronaut", "coffee"):
        for n_labels, n_iterations in ((21, 10), (64, 3)):
            ours = Ours.of(photograph(name, 500, 500), scores(n_labels, 500, 500))
            ours.build()
            times: dict[MarginalDtype, list[float]] = {dtype: [] for dtype in MARGINAL_DTYPES}
            for _ in range(rounds):
                for dtype, own in times.items():
                    ours.crf.marginal_dtype = dtype
                    begin = time.thread_time()
                    ours.iterate(n_iterations)
                    own.append(time.thread_time() - begin)
            wide, narrow = times.values()
            row = (milliseconds(wide), milliseconds(narrow), f"{ratio(narrow, wide):.2f}")
            report.row(name, str(n_labels), str(n_iterations), *row)


def compare_accuracy(report: Report, side: int) -> None:
    report.table(
        f"Accuracy after 10 iterations, {side} x {side} of photographs, |dQ| against float64 throughout",
        "photograph", "labels", "marginals", "99.9 %", "99.99 %", "largest", "pixels with another label",
    )  # fmt: skip
    # Widths without a common measure: pixels on the faces of simplices may rightly fall to either side.
    config = CrfConfig(theta_alpha=159.731, theta_beta=2.98713, theta_gamma=2.99157)
    for name in PHOTOGRAPHS:
        image = torch.from_numpy(photograph(name, 500, 500)[100 : 100 + side, 150 : 150 + side].copy())
        planes = image.permute(2, 0, 1)[None]
        reference = CrfRnn(1, config)
        reference.backend = "reference"
        kernels = reference.prepare(planes.double())
        prepared = CrfRnn(1, config).prepare(planes)
        for n_labels in (5, 21):
            unary = scores(n_labels, 500, 500)[..., 100 : 100 + side, 150 : 150 + side].contiguous()
            layer = CrfRnn(n_labels, config).eval()
            with torch.inference_mode():
                exact = layer(unary.double(), prepared=kernels).softmax(1)
                for layer.marginal_dtype in MARGINAL_DTYPES:
                    marginals = layer(unary, prepared=prepared).softmax(1)
                    ordered = (marginals.double() - exact).abs().flatten().sort().values
                    n = len(ordered)
                    report.row(
                        name,
                        str(n_labels),
                        layer.marginal_dtype,
                        *(f"{float(ordered[i]):.1e}" for i in (int(0.999 * n), int(0.9999 * n), n - 1)),
                        f"{int((marginals.argmax(1) != exact.argmax(1)).sum())} of {side * side}",
                    )


def compare_memory(report: Report) -> None:
    report.table(
        "Peak memory above the inputs, MiB (a process each)", "size", "labels", "ours", "peer", "ours / peer"
    )
    for side, n_labels in ((500, 21), (500, 2), (2048, 21)):
        peaks = []
        for contender in ("ours", "peer"):
            command = [sys.executable, __file__, "--peak", contender, str(side), str(n_labels)]
            peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        share = f"{peaks[0] / peaks[1]:.2f}"
        report.row(f"{side} x {side}", str(n_labels), f"{peaks[0]:.0f}", f"{peaks[1]:.0f}", share)


def print_peak(contender: str, side: int, n_labels: int) -> None:
    import resource

    image, unary = photograph("retina", side, side), scores(n_labels, side, side)
    small = photograph("retina", 32, 32), scores(n_labels, 32, 32)
    job = Ours.of(image, unary) if contender == "ours" else Peer.of(image, unary)
    warm_up = Ours.of(*small) if contender == "ours" else Peer.of(*small)
    warm_up.build()
    warm_up.iterate(1)
    # Making the inputs may have left a higher mark: fill up to it, so that what follows shows.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ballast = bytearray(int(max(0.0, before - resident()) * 2**20))
    job.build()
    job.iterate(2)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    del ballast
    print(after - before)


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def compare_training(report: Report, rounds: int) -> None:
    report.table(
        "Training: forward and backward of 5 iterations, 21 labels, 1 thread",
        "size", "lattices kept, ms", "the same iterated in torch, ms",
        "built anew for every filter call, ms", "ratio",
    )  # fmt: skip
    for side in (256, 500):
        image, unary = photograph("astronaut", side, side), scores(21, side, side).requires_grad_()
        ours = Ours.of(image, unary)
        kept: list[float] = []
        in_torch: list[float] = []
        anew: list[float] = []
        for _ in range(1 + max(1, rounds // 2)):
            begin = time.thread_time()
            prepared = ours.crf.prepare(ours.image)
            ours.crf(unary, prepared=prepared, n_iterations=5).square().mean().backward()
            kept.append(time.thread_time() - begin)
            begin = time.thread_time()
            prepared = ours.crf.prepare(ours.image)
            ours.crf._mean_field(unary, prepared, 5).square().mean().backward()
            in_torch.append(time.thread_time() - begin)
            features = [
                torch.from_numpy(np.ascontiguousarray(feature)) for feature in published_features(image)
            ]
            matrices = [
                (scale * torch.eye(21)).requires_grad_() for scale in (3.0, 5.0, -1.0)
            ]  # learnt, as ours
            begin = time.thread_time()
            state = flat = unary[0].flatten(1).T
            for _ in range(5):
                marginals = state.softmax(1)
                messages = [rebuilt_filter(feature, marginals) for feature in features]
                weighted = [message @ matrix for message, matrix in zip(messages, matrices, strict=False)]
                state = flat - sum(weighted) @ matrices[2]
            state.square().mean().backward()
            anew.append(time.thread_time() - begin)
        for times in (kept, in_torch, anew):
            del times[0]  # the first round touches fresh memory; lessons have hundreds
        row = (*map(milliseconds, (kept, in_torch, anew)), f"{ratio(kept, anew):.1f}")
        report.row(f"{side} x {side}", *row)
    report.say()
    report.say(
        "The last times are of no other package: they are of our own lattice in the way of use of the "
        "published PyTorch port, built for the normalisation and for every filter call forward and backward, "
        "with the three matrices that both learn. "
        "The ratio is theirs to the first, which includes building the lattices once."
    )


class _Rebuilt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, values: Tensor, features: Tensor) -> Tensor:
        ctx.save_for_backward(features)  # type: ignore[attr-defined]
        return Lattice(features).filter(values)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        (features,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return Lattice(features).filter(gradient.contiguous(), transpose=True), None


def rebuilt_filter(features: Tensor, values: Tensor) -> Tensor:
    norm = Lattice(features).filter(torch.ones_like(features[:, :1]))
    out = _Rebuilt.apply(values, features)
    assert isinstance(out, Tensor)
    return out / norm


def published_features(image: Image) -> Iterator[NDArray[np.float32]]:
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    position = np.stack([x, y], axis=-1).reshape(-1, 2)
    yield position / np.float32(3)
    colour = image.reshape(-1, 3).astype(np.float32)
    yield np.concatenate([position / np.float32(160), colour / np.float32(3)], axis=1)


def measure_others(report: Report, rounds: int, quick: bool) -> None:
    report.table(
        "Other shapes, build and 10 iterations, 5 labels, 1 thread (no peer)",
        "what", "N", "ms build", "ms iterations", "ns per point and iteration",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    volume = torch.nn.functional.interpolate(
        torch.rand(1, 1, 16, 16, 16, generator=generator), (128, 128, 128), mode="trilinear"
    )
    photo = torch.from_numpy(photograph("astronaut", 256, 256)).permute(2, 0, 1)[None].float()
    cases = {
        "volume 128^3, grey (d = 3 and 4)": 255.0 * volume,
        "image 256^2, 4 channels (d = 6)": torch.cat([photo, photo.mean(1, keepdim=True)], dim=1),
        "image 256^2, 6 channels (d = 8)": torch.cat([photo, 255 - photo.flip(1)], dim=1),
    }
    for name, image in cases.items():
        crf = CrfRnn(5, CrfConfig(theta_beta=8.0)).eval()
        unary = torch.randn(1, 5, *image.shape[2:], generator=generator)
        report.row(name, *cost(crf, image, unary, max(1, rounds // 3)))
    report.table(
        "Cost per pixel, 21 labels, 1 thread",
        "photograph", "N", "ms build", "ms iterations", "ns per point and iteration",
    )  # fmt: skip
    for side in (128, 256, 512, 1024, 2048) if quick else (128, 256, 512, 1024, 2048, 4096):
        image = torch.from_numpy(photograph("retina", side, side)).permute(2, 0, 1)[None]
        timing = cost(CrfRnn(21).eval(), image, scores(21, side, side), 3 if side < 1024 else 1)
        report.row(f"retina {side}^2", *timing)


def cost(crf: CrfRnn, image: Tensor, unary: Tensor, rounds: int) -> tuple[str, str, str, str]:
    times = Times()
    for _ in range(rounds):
        begin = time.thread_time()
        prepared = crf.prepare(image)
        middle = time.thread_time()
        with torch.inference_mode():
            crf(unary, prepared=prepared, n_iterations=10)
        times.build.append(middle - begin)
        times.iterate.append(time.thread_time() - middle)
    n = image[0, 0].numel()
    each = f"{1e9 * min(times.iterate) / 10 / n:.0f}"
    return str(n), milliseconds(times.build), milliseconds(times.iterate), each


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the first tables only, and fewer rounds")
    parser.add_argument("--rounds", type=int, default=7, help="how often the contenders take turns")
    parser.add_argument("--write", metavar="NAME", help="write benchmarks/results/NAME.md")
    parser.add_argument("--peak", nargs=3, metavar=("WHO", "SIDE", "LABELS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_num_threads(1)
    if arguments.peak:
        print_peak(arguments.peak[0], int(arguments.peak[1]), int(arguments.peak[2]))
        return
    rounds = min(arguments.rounds, 3) if arguments.quick else arguments.rounds
    report = Report()
    config = build_config()
    report.say("# Mean-field inference on the CPU, against pydensecrf2")
    report.say()
    report.say(
        f"{processor()}; {config['compiler']}; {config['simd']}; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    )
    report.say(
        f"`python benchmarks/lattice.py {' '.join(sys.argv[1:])}`; "
        f"load average {load_average()} at the start."
    )
    compare(report, rounds)
    compare_labels(report, max(1, rounds // 2))
    compare_matrices(report, rounds)
    compare_marginals(report, rounds)
    compare_accuracy(report, 96 if arguments.quick else 160)
    if not arguments.quick:
        compare_sizes(report, rounds)
        compare_memory(report)
        compare_training(report, rounds)
        measure_others(report, rounds, arguments.quick)
    report.say()
    report.say(
        f"Load average {load_average()} at the end. Times are minima over {rounds} rounds, ratios medians."
    )
    if arguments.write:
        path = Path(__file__).parent / "results" / f"{arguments.write}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(report.lines) + "\n")
        print(f"written to {path}")


def load_average() -> str:
    path = Path("/proc/loadavg")
    return path.read_text().split()[0] if path.exists() else "unknown"


if __name__ == "__main__":
    main()
