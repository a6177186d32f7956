"""Measure what a person waits for in a round of learning: the result, signs of life, and Cancel.

    python benchmarks/rounds.py ../shared/data [--k 1 3] [--spread 8] [--clock cpu] [--write NAME]
    python benchmarks/rounds.py ../shared/data --cases masks "one new" --no-cancels

Images of the training splits, cut to their middle square and brought to ``--side``, with the strokes of a
simulated annotator (learning/annotator.py), for three kinds of rounds: all classes are new to the model
(stained nuclei; also with one whole mask), one is new beside those that it knows (roads in street scenes),
and none is (cars and people there). Of each, from the starter model on:

- "round": seconds of `fine_tune` with its default settings, and of its CPU time; "segment": those of
  segmenting an image anew after it; "IoU": mean IoU of the labelled images before and after, by their masks,
  of the classes that are labelled: whether what a person sees has become better.
- "told": the longest time without progress told.
- "cancel": the longest time from a cancel to the return of `fine_tune`, of cancels at many moments: in every
  phase right after the question whether to stop that is followed by the longest wait until it is asked again,
  and ``--spread`` moments more.
- "asked": the longest wait between two such questions in the whole round, and the phase it falls in.

The clock counts what else the machine does; on a busy one, ``--clock cpu`` takes the time of the processor
instead (of one thread: ``--threads 1``), that of all threads together where some learn beside others, and
``--no-limit`` keeps the limit of time, which goes by the wall, from ending a round. A round of one iteration
comes before, so that nothing is measured that is loaded once in a session.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from skimage.transform import resize

from napari_crfasrnn import Project, Segmenter, TrainConfig, fine_tune, load_model, metrics
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.training import TrainReport, TrainStep

sys.path.insert(0, str(Path(__file__).parent / "learning"))
from annotator import UNLABELLED, Labels, first_strokes
from photographs import Photograph, PhotographSet

RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "round of", "labels", "k", "round, s", "round, CPU s", "segment, s", "IoU",
    "told, s", "cancel, s", "asked, s", "in",
)  # fmt: skip
PHASES = {  # function below `_Round` that is at work
    "labelled_planes": "reading labels",
    "__init__": "features",
    "score": "scores",
    "run": "forests and perceptrons",
    "windows": "windows of a head",
    "wait": "waiting for forests and perceptrons",
    "choose_crf": "choice of the CRF",
    "raise_if_cancelled": "between steps",
}
STREET = {"car": "car", "pedestrian": "person", "bicyclist": "person"}  # as the starter calls them


Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True, eq=False)
class Case:
    """Images, their masks, and labels in a project's classes."""

    name: str
    labels: str
    classes: list[str]
    photographs: list[Photograph]
    painted: list[Labels]


@dataclass
class Watch:
    """What `fine_tune` is given instead of a person: it notes when it is told and asked something.

    Attributes
    ----------
    stop_after
        Number of the question after which a cancel is pressed; None: never.
    """

    clock: Clock
    stop_after: int | None = None
    told: list[float] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)

    def progress(self, step: TrainStep) -> None:
        self.told.append(self.clock())

    def cancel(self) -> bool:
        self.asked.append(self.clock())
        self.phases.append(_phase())
        return self.stop_after is not None and len(self.asked) > self.stop_after + 1


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    model = load_model("starter")
    lines = [_line(COLUMNS), "|" + "---|" * len(COLUMNS)]
    print("\n".join(lines), flush=True)
    n_spread = None if options.no_cancels else options.spread
    for case in _cases(options, model):
        if not any(part in f"{case.name} {case.labels}" for part in options.cases):
            continue
        config = TrainConfig(seconds=None) if options.no_limit else TrainConfig()
        lines.append(_line(_measure(case, model, config, n_spread, CLOCKS[options.clock])))
        print(lines[-1], flush=True)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        when = datetime.now(tz=UTC).strftime("%Y-%m-%d")
        clock = f"{options.clock} clock" + (", no limit" if options.no_limit else "")
        about = (
            f"{platform.machine()}, {options.threads} thread(s), torch {torch.__version__}, {clock}, {when}"
        )
        text = f"# A round of learning\n\n{about}\n\n" + "\n".join(lines) + "\n"
        (RESULTS / f"{options.write}.md").write_text(text)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 3], help="labelled images")
    parser.add_argument("--spread", type=int, default=8, help="cancels beside those at the worst moments")
    parser.add_argument("--cases", nargs="+", default=[""], help="only those with one of these in their name")
    parser.add_argument(
        "--no-cancels", action="store_true", help="leave out the cancels: two minutes, not six"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--no-limit", action="store_true", help="no limit of time, for a busy machine")
    parser.add_argument("--write", metavar="NAME", help="also write results/NAME.md")
    return parser.parse_args()


def _cases(options: argparse.Namespace, model: SegmentationModel) -> Iterator[Case]:
    known = [spec.name for spec in model.classes]
    stained = PhotographSet(options.data / "histo_gbm40", options.side)
    street = PhotographSet(options.data / "camvid11", options.side)
    in_starter = {
        value: known.index(STREET[name]) for value, name in enumerate(street.classes) if name in STREET
    }
    one_new = in_starter | {street.classes.index("road"): len(known)}
    for k in options.k:
        tissue = [_sized(each, options.side) for each in stained.training(k, 0)]
        scenes = [_sized(each, options.side) for each in street.training(k, 0)]
        yield _case("new classes", "strokes", stained.classes, tissue)
        if k == min(options.k):
            yield _case("new classes", "masks", stained.classes, tissue)
        yield _case(
            "one new class", "strokes", [*known, "road"], [each.renamed(one_new, rest=0) for each in scenes]
        )
        yield _case("known classes", "strokes", known, [each.renamed(in_starter, rest=0) for each in scenes])


def _case(name: str, labels: str, classes: list[str], photographs: list[Photograph]) -> Case:
    painted = [
        each.mask if labels == "masks" else first_strokes(each.mask, np.random.default_rng([0, number, 11]))
        for number, each in enumerate(photographs)
    ]
    return Case(name, labels, classes, photographs, painted)


def _sized(photograph: Photograph, side: int) -> Photograph:
    size = (side, side)
    image = resize(photograph.image, size, order=1, preserve_range=True, anti_aliasing=False)
    mask = resize(photograph.mask, size, order=0, preserve_range=True, anti_aliasing=False)
    return Photograph(photograph.name, np.rint(image).astype(np.uint8), mask.astype(np.uint8))


def _measure(
    case: Case, model: SegmentationModel, config: TrainConfig, n_spread: int | None, clock: Clock
) -> tuple[str, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "project"
        with Project.create(path, case.classes) as project:
            for photograph, labels in zip(case.photographs, case.painted, strict=True):
                project.add(photograph.image, labels=labels)
            fine_tune(model, project, TrainConfig(max_iterations=1, crf_iterations=0))
            watch = Watch(clock)
            begun, used = clock(), time.process_time()
            report = fine_tune(model, project, config, watch.progress, watch.cancel)
            ended, used = clock(), time.process_time() - used
            segmented = _segment(report, case, clock)
            moments = [] if n_spread is None else _moments(watch, ended, n_spread)
            latencies = [_cancel(model, project, config, number, clock) for number in moments]
    told = _longest([begun, *watch.told, ended])[0]
    asked, place = _longest([*watch.asked, ended])
    before = _score(model.with_classes(report.model.classes), case)
    return (
        case.name, case.labels, str(len(case.photographs)), f"{ended - begun:.1f}", f"{used:.1f}",
        f"{segmented:.1f}", f"{before:.2f} → {_score(report.model, case):.2f}",
        f"{told:.2f}", f"{max(latencies):.2f}" if latencies else "–", f"{asked:.2f}", watch.phases[place],
    )  # fmt: skip


def _moments(watch: Watch, ended: float, n_spread: int) -> list[int]:
    """Return after which questions to press Cancel."""
    waits = np.diff([*watch.asked, ended])
    phases = np.array(watch.phases)
    worst = [
        int(np.flatnonzero(phases == phase)[waits[phases == phase].argmax()]) for phase in set(watch.phases)
    ]
    times = np.linspace(watch.asked[0], ended, n_spread + 2)[1:-1]
    spread = np.searchsorted(watch.asked, times) - 1
    return sorted({*worst, *spread.tolist()})


def _cancel(
    model: SegmentationModel, project: Project, config: TrainConfig, number: int, clock: Clock
) -> float:
    """Return how long `fine_tune` goes on after a cancel right after a question."""
    watch = Watch(clock, stop_after=number)
    report = fine_tune(model, project, config, watch.progress, watch.cancel)
    ended = clock()
    assert len(watch.asked) <= number + 1 or report.stopped_by == "cancelled"
    return ended - watch.asked[min(number, len(watch.asked) - 1)]


def _segment(report: TrainReport, case: Case, clock: Clock) -> float:
    begun = clock()
    segmenter = Segmenter(report.model, device="cpu")
    segmenter.set_image(case.photographs[0].image)
    segmenter.predict()
    return clock() - begun


def _score(model: SegmentationModel, case: Case) -> float:
    """Return the mean IoU over the classes that are labelled."""
    segmenter = Segmenter(model, device="cpu")
    counts = np.zeros((model.n_labels, model.n_labels), np.int64)
    for photograph in case.photographs:
        segmenter.set_image(photograph.image)
        counts += metrics.confusion(segmenter.predict().labels, photograph.mask, model.n_labels)
    there = sorted(set(np.concatenate([each[each != UNLABELLED] for each in case.painted]).tolist()))
    return float(np.nanmean(metrics.iou(counts)[there]))


def _longest(times: Sequence[float]) -> tuple[float, int]:
    waits = np.diff(times)
    return float(waits.max()), int(waits.argmax())


def _phase() -> str:
    """Return what the round is doing that asks: the function that it called, by the names in `PHASES`."""
    frame, called = sys._getframe(2), ""
    while not (frame.f_code.co_qualname.startswith("_Round.") and called not in ("", "cancel")):
        called = frame.f_code.co_name
        assert frame.f_back is not None
        frame = frame.f_back
    return PHASES.get(called, called)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
