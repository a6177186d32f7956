"""Measure how fast a shipped model is, and what memory it takes.

    python tools/starter_speed.py
    python tools/starter_speed.py --threads 2

On the photograph astronaut, 512×512 pixels, with `Segmenter`: seconds by the clock and of the processor (all
threads together) for loading, for the first prediction, and for later ones (the least of several), with the
CRF and without it; the peak memory of the process.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import skimage.data
import torch

from napari_crfasrnn.segmenter import Segmenter
from napari_crfasrnn.zoo import STARTER, load_model


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds by the clock and of the processor that a piece of work takes."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def peak() -> float:
    """Return the peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description="Measure how fast a shipped model is.")
    parser.add_argument("--model", default=STARTER, help="its name")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    photograph = skimage.data.astronaut()
    print(f"{args.model}, {args.threads} threads; memory at the start {peak():.0f} MB")
    found: list[Segmenter] = []
    rows = {"loading": timed(lambda: found.append(Segmenter(load_model(args.model))))}
    segmenter = found[0]

    def predict(*, crf: bool = True) -> None:
        segmenter.set_image(photograph, axes="yxc")
        segmenter.predict(crf=crf)

    rows["first prediction"] = timed(predict)
    for name, crf in (("network and CRF", True), ("network alone", False)):
        rounds = [timed(lambda crf=crf: predict(crf=crf)) for _ in range(args.rounds)]  # type: ignore[misc]
        clock, processor = zip(*rounds, strict=True)
        rows[name] = (min(clock), min(processor))
    for name, (clock_s, processor_s) in rows.items():
        print(f"{name:18} {clock_s:.2f} s by the clock, {processor_s:.2f} s of the processor")
    print(f"peak memory {peak():.0f} MB")


if __name__ == "__main__":
    main()
