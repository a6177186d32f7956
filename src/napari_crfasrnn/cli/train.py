"""``napari-crfasrnn train``: from a folder of images with masks to a model."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_crfasrnn.cli.evaluate import check_folder, check_others, parse_classes
from napari_crfasrnn.cli.reporting import INTERRUPTED, check_output, one_sentence, print_json, remark
from napari_crfasrnn.progress import Cancel, Cancelled

if TYPE_CHECKING:
    from napari_crfasrnn.config import Recipe
    from napari_crfasrnn.training import DataTraining, Iteration

SAY_EVERY = 30.0  # seconds, where there is no terminal
RECIPE_FILE = "recipe.toml"  # in the folder of a training
LOG_PACKAGES = {"matplotlib": "curves.png", "tensorboardX": "logs for TensorBoard"}


def train(
    data: Annotated[
        Path, typer.Option("--data", "-d", help="Folder of images with masks, in VOC's or the plain layout.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for models, logs and the state; made if not there.")
    ],
    recipe: Annotated[Path | None, typer.Option("--recipe", help="TOML file of settings.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the training in the output folder, if there is one.")
    ] = False,
    classes: Annotated[
        str | None, typer.Option(help="Only these classes of the data, separated by commas.")
    ] = None,
    others: Annotated[
        str, typer.Option(help="What pixels of other classes are: background or ignore.")
    ] = "background",
    architecture: Annotated[str | None, typer.Option(help="fcn-lite, fcn-fine or fcn-8s.")] = None,
    start: Annotated[str | None, typer.Option(help="Name or file of a model, imagenet, or scratch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random choice.")] = None,
    batch: Annotated[int | None, typer.Option(help="Windows in an iteration of the network alone.")] = None,
    fcn_iterations: Annotated[int | None, typer.Option(help="Of the first stage: the network alone.")] = None,
    crf_iterations: Annotated[int | None, typer.Option(help="Of the second stage: the CRF alone.")] = None,
    joint_iterations: Annotated[int | None, typer.Option(help="Of the third stage: end to end.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the head of the network.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Use at most this many processors; all if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result for machines.")] = False,
) -> None:
    """Train a model on images with masks: the network alone, then its CRF, then both end to end.

    Whatever interrupts it, the same command with --resume goes on, and the final weights are the same.
    Ctrl-C saves what was reached and stops; a second one stops at once.
    For several GPUs: torchrun --nproc-per-node N --no-python napari-crfasrnn train ...
    """
    changes = {
        "architecture": architecture,
        "start": start,
        "seed": seed,
        "batch": batch,
        "fcn_iterations": fcn_iterations,
        "crf_iterations": crf_iterations,
        "joint_iterations": joint_iterations,
        "learning_rate": learning_rate,
    }
    check_folder(data)
    check_output("--output", output)
    speaks = os.environ.get("RANK", "0") == "0"
    with one_sentence():
        if resume and recipe is None and (output / RECIPE_FILE).is_file():
            recipe = output / RECIPE_FILE  # what is not said again is as it was
        settings = _settings(recipe, {name: value for name, value in changes.items() if value is not None})
        if speaks:
            _say_what_is_missing()
        names = parse_classes(classes)
        with _bar(settings, speaks) as show, _stoppable() as cancel:
            result = _train(
                data, names, check_others(others), output, settings, resume, device, threads, show, cancel
            )
    if result is None:
        saved = (output / "state.pt").exists()
        remark(
            "stopped; the same command with --resume goes on"
            if saved
            else "stopped before there was anything to save"
        )
        raise typer.Exit(INTERRUPTED)
    if speaks:
        _report(result, as_json)


def _settings(recipe: Path | None, changes: dict[str, Any]) -> Recipe:
    """Return the recipe of a file with what the command line changes."""
    from pydantic import ValidationError

    from napari_crfasrnn.config import Recipe, sentence_of

    settings = Recipe() if recipe is None else Recipe.from_toml(recipe)
    try:
        return Recipe.model_validate(settings.model_dump() | changes)
    except ValidationError as error:
        raise ValueError(sentence_of(error)) from None


def _train(
    data: Path,
    names: list[str] | None,
    others: Any,
    output: Path,
    settings: Recipe,
    resume: bool,
    device: str,
    threads: int | None,
    show: Callable[[Iteration], None],
    cancel: Cancel | None,
) -> DataTraining | None:
    """Return what the training gave; None if it was stopped."""
    from napari_crfasrnn.cli.segment import use_threads
    from napari_crfasrnn.segmenter import choose_device
    from napari_crfasrnn.training import open_data_set, train

    use_threads(threads)
    found = open_data_set(data)
    if names is not None:
        found = found.with_classes(names, others)
    try:
        return train(
            found,
            output,
            settings,
            resume=resume,
            device=choose_device(device),
            progress=show,
            cancel=cancel,
        )
    except Cancelled:
        return None


@contextmanager
def _stoppable() -> Iterator[Cancel | None]:
    """Yield what tells whether Ctrl-C was pressed; from then on it interrupts as ever.

    A training can be saved between iterations only. Several processes would stop at different ones and wait
    for each other, so there nothing changes; nor where Ctrl-C is another's, or ignored.
    """
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if not is_alone or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield None
        return
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        remark("stopping after this iteration, or evaluation; Ctrl-C again stops at once, without saving")

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _say_what_is_missing() -> None:
    from importlib.util import find_spec

    missing = [what for package, what in LOG_PACKAGES.items() if find_spec(package) is None]
    if missing:
        remark(f'there will be no {" and no ".join(missing)}: pip install "napari-crfasrnn[train]"')


def _report(result: DataTraining, as_json: bool) -> None:
    scores = result.history.as_dict()["scores"]
    last = scores[-1] if scores else None
    if as_json:
        print_json(
            {
                "model": str(result.folder / "last.safetensors"),
                "best": str(result.folder / "best.safetensors") if result.best is not None else None,
                "best mean IoU": result.best,
                "before": last["before"] if last else None,
                "after": last["after"] if last else None,
            }
        )
        return
    typer.echo(result.folder / "last.safetensors")
    before, after = (last[when]["mean IoU"] for when in ("before", "after")) if last else (None, None)
    if before is not None and after is not None:
        typer.echo(f"validation images: mean IoU {before:.4f} network alone, {after:.4f} with CRF")
    if result.best is not None:
        typer.echo(f"{result.folder / 'best.safetensors'}: mean IoU {result.best:.4f}")


@contextmanager
def _bar(settings: Recipe, speaks: bool) -> Iterator[Callable[[Iteration], None]]:
    """Show a bar for each stage on a terminal, elsewhere a line now and then."""
    from rich.console import Console
    from rich.progress import Progress

    totals = {
        "fcn": settings.fcn_iterations,
        "crf": settings.crf_iterations,
        "joint": settings.joint_iterations,
    }
    console = Console(stderr=True)
    with Progress(console=console, disable=not (speaks and console.is_terminal)) as progress:
        tasks = {stage: progress.add_task(stage, total=total) for stage, total in totals.items() if total}

        told: set[int | None] = {None}
        last_said = time.monotonic()

        def show(iteration: Iteration) -> None:
            nonlocal last_said
            if iteration.at_once not in told:
                told.add(iteration.at_once)
                remark(
                    f"memory ran out: batches are computed {iteration.at_once} windows at a time from here, "
                    "which takes longer and learns the same"
                )
            is_due = time.monotonic() - last_said >= SAY_EVERY or iteration.number == iteration.total
            if speaks and not console.is_terminal and is_due:
                last_said = time.monotonic()
                place = f"{iteration.number} of {iteration.total}"
                typer.echo(f"{iteration.stage}: {place}, loss {iteration.loss:.3f}", err=True)
            progress.update(
                tasks[iteration.stage],
                completed=iteration.number,
                description=f"{iteration.stage}, loss {iteration.loss:.3f}",
            )

        yield show
