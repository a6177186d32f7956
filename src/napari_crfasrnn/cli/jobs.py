"""What ``napari-crfasrnn segment`` is to do: which images, which files of each, and what is there already."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OUTPUT_KINDS = ("labels", "overlay", "entropy", "probabilities")
Existing = Literal["refuse", "overwrite", "skip"]


@dataclass(frozen=True)
class Job:
    """One image to segment."""

    image: Path
    name: str
    """How its output files begin."""
    named: bool
    """Whether the user named it, rather than its folder."""

    @property
    def is_video(self) -> bool:
        """Whether it is a video, by its suffix."""
        from napari_crfasrnn.cli.video import VIDEO_SUFFIXES

        return self.image.suffix.lower() in VIDEO_SUFFIXES


@dataclass(frozen=True)
class Wanted:
    """What the user wants of each image."""

    output: Path
    axes: str | None = None
    crf: bool = True
    overlay: bool = False
    entropy: bool = False
    probabilities: bool = False
    extra: Path | None = None
    extra_width: float = 1.0
    existing: Existing = "refuse"
    """What becomes of output files that are there already: people correct them by hand."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which files are to be written."""
        asked = (True, self.overlay, self.entropy, self.probabilities)
        return tuple(kind for kind, is_asked in zip(OUTPUT_KINDS, asked, strict=True) if is_asked)


def find_jobs(images: Sequence[Path]) -> tuple[list[Job], dict[Path, str]]:
    """List the images of files and folders, each once, folders by their image files.

    In folders, what an earlier run wrote (``..._labels.png`` and so on) is no image. A link that leads
    nowhere is one, so that it is reported like any other file that cannot be read.

    Returns
    -------
    jobs
        The images.
    fruitless
        Folders that give none, and why.

    Raises
    ------
    ValueError
        If the outputs of two images would have the same name.
    """
    from napari_crfasrnn.cli.video import VIDEO_SUFFIXES
    from napari_crfasrnn.imaging import IMAGE_SUFFIXES

    found: dict[Path, bool] = {}
    fruitless: dict[Path, str] = {}
    for path in images:
        if not path.is_dir():
            found[path] = True
            continue
        try:
            inside = [
                file
                for file in sorted(path.iterdir())
                if file.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
                and not file.name.startswith(".")
                and not file.stem.endswith(tuple(f"_{kind}" for kind in OUTPUT_KINDS))
                and (file.is_file() or (file.is_symlink() and not file.exists()))
            ]
        except PermissionError:
            fruitless[path] = f"images must be readable, got no permission for the folder {path}"
            continue
        if not inside:
            fruitless[path] = f"images must hold an image file, got a folder without one: {path}"
        for file in inside:
            found.setdefault(file, False)
    once = _each_once(found)
    names = _output_names(list(once))
    return [Job(path, names[path], named) for path, named in once.items()], fruitless


def _each_once(found: dict[Path, bool]) -> dict[Path, bool]:
    """Count a file once that was given in two ways; two links of different names are two images."""
    first: dict[tuple[str, Path], Path] = {}
    once: dict[Path, bool] = {}
    for path, named in found.items():
        kept = first.setdefault((path.name, Path(os.path.realpath(path))), path)
        once[kept] = once.get(kept, False) or named
    return once


def _output_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return how the outputs of each image begin: its stem, or with its suffix where stems collide."""
    names = {path: path.stem for path in paths}
    while shared := {name for name, count in Counter(names.values()).items() if count > 1}:
        longer = {path: path.name.replace(".", "_") for path in paths if names[path] in shared}
        if all(names[path] == name for path, name in longer.items()):
            same = [str(path) for path in paths if names[path] == names[next(iter(longer))]]
            raise ValueError(
                f"images must differ in name, since their labels go to one folder, got {' and '.join(same)}: "
                "segment them into different folders"
            )
        names |= longer
    return names


def output_paths(job: Job, wanted: Wanted, is_stack: bool, n_labels: int) -> dict[str, Path]:
    """Return which files an image gives, by their kinds."""
    if job.is_video:
        paths = {"labels": f"{job.name}_labels", "overlay": f"{job.name}_overlay.mp4"}
        return {kind: wanted.output / paths[kind] for kind in wanted.kinds if kind in paths}
    picture = "tif" if is_stack else "png"
    suffixes = {"labels": "tif" if n_labels > 256 else picture, "overlay": picture}
    return {kind: wanted.output / f"{job.name}_{kind}.{suffixes.get(kind, 'tif')}" for kind in wanted.kinds}


def outputs_there(job: Job, wanted: Wanted, inputs: Collection[Path]) -> dict[str, Path]:
    """Return which of the files wanted of an image are there already, by their kinds.

    Without looking into the image or the model, so under either suffix that they may have. A video's
    folder counts with any frame; with ``existing="skip"`` only with the first, which is put there last.
    A file that is itself one of the images (``inputs``, resolved) is no output.
    """
    there: dict[str, Path] = {}
    for kind in wanted.kinds:
        for path in _possible_paths(job, wanted, kind):
            if path.is_dir():
                frames = "000000.png" if wanted.existing == "skip" else "[0-9]*.png"
                is_there = job.is_video and any(path.glob(frames))
            else:
                is_there = path.exists() and path.resolve() not in inputs
            if is_there:
                there.setdefault(kind, path)
    return there


def _possible_paths(job: Job, wanted: Wanted, kind: str) -> list[Path]:
    options = [output_paths(job, wanted, is_stack, n_labels=1) for is_stack in (False, True)]
    return [paths[kind] for paths in options if kind in paths]
