"""How commands talk: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer

from napari_crfasrnn.shortage import lack_of_memory

BAD_INPUT, INTERRUPTED = 2, 130  # exit codes


def fail(sentence: str) -> NoReturn:
    """Say what is wrong in one sentence and leave with exit code 2."""
    complain(sentence)
    raise typer.Exit(BAD_INPUT)


def complain(sentence: str) -> None:
    """Say on standard error what is wrong, and go on."""
    typer.echo(f"Error: {sentence}", err=True)


def check_output(option: str, folder: Path | None) -> None:
    """Leave if a folder to write to is a file: before torch and the model are loaded, which takes seconds."""
    if folder is not None and folder.exists() and not folder.is_dir():
        fail(f"{option} must be a folder, got the file {folder}")


def remark(sentence: str) -> None:
    """Say on standard error what one should know."""
    typer.echo(f"Note: {sentence}", err=True)


def print_json(value: Any) -> None:
    """Print a value for machines."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn the errors of bad input into one sentence and exit code 2."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, OSError, MemoryError) as error:
        fail(describe(error))


def describe(error: Exception) -> str:
    """Return an error as one sentence on one line."""
    if (lack := lack_of_memory(error)) is not None:
        return lack
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


class Bar:
    """How many images are done, and how far the present one is."""

    def __init__(self, show: Callable[[float], None]) -> None:
        self._show = show
        self._images = 0

    def within(self, done: int, total: int) -> None:
        """Show how far the present image is."""
        self._show(self._images + done / total)

    def next(self) -> None:
        """Show that an image is done."""
        self._images += 1
        self._show(self._images)


@contextmanager
def progress_bar(n_images: int, title: str) -> Iterator[Bar]:
    """Show a bar over all images on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=n_images)
        yield Bar(lambda done: progress.update(task, completed=done))
