"""Learning from few labels, measured against what annotators have today.

    python benchmarks/learning ../shared/data            (make bench-learning; under an hour on two cores)
    python benchmarks/learning ../shared/data --quick    (five minutes)
    python benchmarks/learning --tables                  (print the tables of the results there are)
    python benchmarks/learning ../shared/data --effort   (the effort curve: effort.py says what it is)
    python benchmarks/learning --effort --tables --picture docs/images/effort.png
    python benchmarks/learning ../shared/data --sets em_vnc --labels strokes --k 1 --seeds 0 --picture a.png

Labels: strokes by a simulated annotator (annotator.py), or whole masks, on k images of a set's training
split. Scores: mean IoU over six images of its validation split, which no learner sees and no setting was
chosen on. Columns: random forests on classic and on encoder features, each alone and with a dense CRF
(rivals.py), each on the images as they are and stretched in brightness as ours are; and `fine_tune` from
the starter model on a project with these labels, without its CRF and as it comes. Each run leaves a JSON
file for the rivals and one for ours; what is there is not done again, so an interrupted benchmark goes on
where it was. After a change of the learner: --again ours.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import effort
import effort_tables
import tables
from photographs import SETS
from pictures import save_failures
from runs import Run, judged, work

RESULTS = Path(__file__).parents[1] / "results" / "learning"
SIDE = 256
SECONDS = 40.0  # a round has 20 s of two cores; here each has one core
DENSE_UP_TO = 3  # images with whole masks: nobody paints more of them to begin with
WHOSE = ("rivals", "ours")
QUICK_SETS = ("dsb2018_fluo", "em_vnc", "histo_gbm40", "camvid11")


def main() -> None:
    options = _parse()
    if options.effort:
        _effort(options)
        return
    if options.tables:
        tables.show(options.results, options.whose)
        return
    runs = list(_runs(options))
    if options.picture:
        save_failures(options.picture, judged(runs, options))
        return
    options.results.mkdir(parents=True, exist_ok=True)
    for whose in options.again:
        for run in runs:
            run.file(options.results, whose).unlink(missing_ok=True)
    missing = [
        run for run in runs if not all(run.file(options.results, whose).exists() for whose in options.whose)
    ]
    groups = [list(group) for _, group in itertools.groupby(missing, key=lambda run: (run.seed, run.name))]
    print(f"{len(missing)} of {len(runs)} runs to do, in {options.results}", flush=True)
    if options.processes == 1:
        for group in groups:
            work((group, options))
    elif groups:
        # Each process takes one core: learners and rivals alike.
        os.environ["OMP_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("spawn")
        with context.Pool(options.processes, maxtasksperchild=4) as pool:
            for _ in pool.imap_unordered(work, [(group, options) for group in groups], chunksize=1):
                pass
    tables.show(options.results, options.whose)


def _effort(options: argparse.Namespace) -> None:
    if not options.tables:
        effort.run(options)
        return
    effort_tables.show(options.results)
    if options.picture:
        effort_tables.plot(options.results, options.picture)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="folder of the sets")
    parser.add_argument("--quick", action="store_true", help="four sets, k = 1 and 3, one seed")
    parser.add_argument("--tables", action="store_true", help="only print the results there are")
    parser.add_argument("--again", nargs="+", choices=WHOSE, default=[], help="forget these results first")
    parser.add_argument("--effort", action="store_true", help="measure strokes until images are labelled")
    parser.add_argument(
        "--picture",
        type=Path,
        help="only save the worst image of each run of ours as PNG; with --effort: save the curves, too",
    )
    parser.add_argument("--whose", nargs="+", choices=WHOSE, default=WHOSE, help="measure only these")
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--labels", nargs="+", choices=["strokes", "dense"], default=["strokes", "dense"])
    parser.add_argument("--k", nargs="+", type=int)
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--side", type=int, default=SIDE, help="pixels that images are cut to")
    parser.add_argument("--images", type=int, default=6, help="validation images of each set")
    parser.add_argument("--seconds", type=float, help=f"of learning by the clock, at most: {SECONDS:g}")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--annotator", choices=["careful", "wandering"], default="careful")
    parser.add_argument(
        "--on",
        choices=["val", "train"],
        default="val",
        help="train: some left over there, to choose on",
    )
    options = parser.parse_args()
    if options.annotator != "careful" and options.results is None:
        parser.error(
            "other strokes must not mix with those of the tables: name another folder with --results"
        )
    if options.data is None and not options.tables:
        parser.error("data must name the folder of the sets")
    quick = options.quick
    if not options.effort:
        options.sets = options.sets or (QUICK_SETS if quick else SETS)
    options.k = options.k or ([1, 3] if quick else [1, 3, 5, 10])
    options.seeds = options.seeds or ([0] if quick or options.effort else [0, 1, 2])
    options.seconds = options.seconds or SECONDS
    folder = ("effort" if options.effort else "") + ("-quick" if quick and options.effort else "")
    options.results = options.results or RESULTS / (folder or ("quick" if quick else "full"))
    return options


def _runs(options: argparse.Namespace) -> Iterator[Run]:
    for seed, name, labels, k in itertools.product(options.seeds, options.sets, options.labels, options.k):
        if labels == "strokes" or k <= DENSE_UP_TO:
            yield Run(name, labels, k, seed)


if __name__ == "__main__":
    main()
