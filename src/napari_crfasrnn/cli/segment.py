"""``napari-crfasrnn segment``: images in, label files out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_crfasrnn.cli.jobs import Existing, Job, Wanted, find_jobs, output_paths, outputs_there
from napari_crfasrnn.cli.reporting import (
    BAD_INPUT,
    check_output,
    complain,
    describe,
    fail,
    one_sentence,
    print_json,
    progress_bar,
    remark,
)

if TYPE_CHECKING:
    from napari_crfasrnn.imaging import ImageSource
    from napari_crfasrnn.progress import Progress
    from napari_crfasrnn.segmenter import Segmentation, Segmenter

SHOWN_FILES = 3  # of those in the way
SHOWN_SHARE = 0.005  # classes below it are not worth a word on the terminal


def segment(
    images: Annotated[
        list[Path], typer.Argument(help="Image files (PNG, JPEG, TIFF, ...), videos, and folders of them.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the label files; made if it is not there.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="Name or file of a model.")] = "starter",
    crf: Annotated[bool, typer.Option(help="Refine what the network says with the CRF.")] = True,
    axes: Annotated[
        str | None,
        typer.Option(help="What the axes of the images are, such as YXC or ZYX; guessed if not given."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write a picture of the result.")] = False,
    entropy: Annotated[
        bool, typer.Option("--entropy", help="Also write the uncertainty, a TIFF of values 0 to 1.")
    ] = False,
    frame: Annotated[
        str | None,
        typer.Option(
            help="How to look at an image: free; or caffe or pytorch, as the demos of the original CRF-RNN "
            "did, on 500×500 padded pixels. As the model says if not given."
        ),
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Also write those of all classes, a TIFF of values 0 to 1."),
    ] = False,
    extra: Annotated[
        Path | None,
        typer.Option(
            help="What else tells pixels apart, such as depth: an image of the same size, or a folder of "
            "them with the names of the images. The CRF follows its edges, too."
        ),
    ] = None,
    extra_width: Annotated[
        float, typer.Option(min=1e-6, help="Which difference of its values counts, as theta_beta of colours.")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results for machines.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Use at most this many processors; all if not given.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write over output files that are there already.")
    ] = False,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            help="Leave output files that are there already, and pass over images that have all of theirs: "
            "goes on with a run that was interrupted.",
        ),
    ] = False,
) -> None:
    """Segment images and write their labels.

    NAME_labels.png is an indexed PNG in the colours of the classes, of the size of the image; stacks and
    models of more than 256 classes give NAME_labels.tif. Label values are places in the model's class table.

    A video gives a folder NAME_labels of indexed PNG files, one for each frame, and NAME_overlay.mp4.

    Files in folders that cannot be read are skipped and reported. The exit code is 2 if a file that was named
    could not be segmented, or none at all.
    """
    if extra is not None and not crf:
        fail("--extra needs the CRF, which follows it: leave out --no-crf")
    if overwrite and skip_existing:
        fail("--overwrite and --skip-existing exclude each other: choose one")
    check_output("--output", output)
    existing: Existing = "overwrite" if overwrite else "skip" if skip_existing else "refuse"
    wanted = Wanted(output, axes, crf, overlay, entropy, probabilities, extra, extra_width, existing)
    with one_sentence():
        found, fruitless = find_jobs(images)
        inputs = {job.image.resolve() for job in found}
        jobs = _without_existing(found, wanted, inputs)
    told = _Told(model, as_json, [str(job.image) for job in found if job not in jobs])
    for path, reason in fruitless.items():
        told.skip(path, reason, named=True)
    _run(jobs, wanted, inputs, told, lambda: new_segmenter(model, device, threads, frame))
    told.end()


@dataclass
class _Told:
    """What became of the images, as it is told at the end or as it happens."""

    model: str
    as_json: bool
    existing: list[str]
    done: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    failed_named: bool = False

    def add(self, result: dict[str, Any]) -> None:
        """Take the result of an image."""
        self.done.append(result)
        if not self.as_json:
            typer.echo(_sentence(result))

    def skip(self, image: Path, reason: str, *, named: bool) -> None:
        """Say why there is no result of an image."""
        self.skipped.append({"image": str(image), "reason": reason})
        self.failed_named |= named
        complain(reason if str(image) in reason else f"{image}: {reason}")

    def end(self) -> None:
        """Print the results for machines, and leave with exit code 2 if the user is to look."""
        if self.existing:
            images = "1 image" if len(self.existing) == 1 else f"{len(self.existing)} images"
            remark(f"{images} passed over, whose output files are there already")
        if self.as_json:
            print_json(
                {
                    "model": self.model,
                    "results": self.done,
                    "skipped": self.skipped,
                    "existing": self.existing,
                }
            )
        if self.failed_named or not (self.done or self.existing):
            raise typer.Exit(BAD_INPUT)


def _without_existing(jobs: Sequence[Job], wanted: Wanted, inputs: set[Path]) -> list[Job]:
    """Return what is left to do, or refuse if files are there that nobody said to write over.

    Files that are images themselves are not outputs: writing over them is refused one by one.
    """
    if wanted.existing == "overwrite":
        return list(jobs)
    left: list[Job] = []
    in_the_way: list[Path] = []
    for job in jobs:
        there = outputs_there(job, wanted, inputs)
        in_the_way += there.values()
        if wanted.existing == "refuse" or len(there) < len(wanted.kinds):
            left.append(job)
    if in_the_way and wanted.existing == "refuse":
        raise FileExistsError(_in_the_way(in_the_way))
    return left


def _in_the_way(paths: Sequence[Path]) -> str:
    names = [path.name for path in paths[:SHOWN_FILES]]
    if len(paths) > SHOWN_FILES:
        names.append(f"{len(paths) - SHOWN_FILES} more")
    shown = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return (
        f"{shown} would be written over in {paths[0].parent}: --overwrite does so, --skip-existing leaves "
        "what is there and does the rest; or choose another folder"
    )


def _run(
    jobs: Sequence[Job],
    wanted: Wanted,
    inputs: set[Path],
    told: _Told,
    new: Callable[[], Segmenter],
) -> None:
    """Segment the images one by one; torch and the model, which take seconds, only if one is there."""
    if not any(job.image.exists() for job in jobs):
        for job in jobs:
            kind = "video" if job.is_video else "image"
            told.skip(job.image, f"{kind} file not found: {job.image}", named=job.named)
        return
    with one_sentence():
        segmenter = new()
    with progress_bar(len(jobs), "Segmenting") as bar:
        for job in jobs:
            try:
                told.add(segment_file(segmenter, job, wanted, inputs, bar.within))
            except (ValueError, TypeError, RuntimeError, OSError, MemoryError) as error:
                told.skip(job.image, describe(error), named=job.named)
            bar.next()


def new_segmenter(
    model: str, device: str, threads: int | None, frame: str | None = None, *, option: str = "--model"
) -> Segmenter:
    """Return a segmenter for a model by name or path, with another frame if one is given.

    A ValueError about the model speaks of the `option` that named it.
    """
    from napari_crfasrnn.segmenter import Segmenter
    from napari_crfasrnn.zoo import list_models, load_model

    use_threads(threads)
    if not Path(model).exists() and model not in {entry.name for entry in list_models(downloadable=True)}:
        raise ValueError(
            f"{option} must be the name or the file of a model, got {model!r}; the names are: "
            f"{', '.join(entry.name for entry in list_models())}; "
            "napari-crfasrnn models list says more of them"
        )
    loaded = load_model(model)
    return Segmenter(loaded if frame is None else loaded.with_frame(frame), device)


def use_threads(threads: int | None) -> None:
    """Let torch and the lattice use so many processors; None leaves them as they are."""
    import torch

    from napari_crfasrnn.lattice import set_num_threads

    if threads is not None:
        torch.set_num_threads(threads)
        set_num_threads(threads)


def segment_file(
    segmenter: Segmenter, job: Job, wanted: Wanted, inputs: set[Path], progress: Progress | None = None
) -> dict[str, Any]:
    """Segment one image, write its files, and return what is to be told about it."""
    from napari_crfasrnn.imaging import open_image, read_image

    if job.is_video:
        return _segment_video(segmenter, job, wanted, inputs, progress)
    started = time.perf_counter()
    read = read_image(job.image)
    spacing = read.spacing if wanted.axes in (None, read.axes) else None
    source = open_image(read.array, wanted.axes or read.axes, spacing)
    paths = output_paths(job, wanted, bool(source.stack_shape), segmenter.model.n_labels)
    missing = _to_write(job, wanted, paths, inputs)
    shape = (*source.stack_shape, *source.plane_shape)
    segmenter.set_image(source, extra_features=_extra_features(job, wanted, shape))
    result = segmenter.predict(crf=wanted.crf, marginals="probabilities" in missing, progress=progress)
    try:
        _write(result, source, missing)
    except OSError as error:
        raise ValueError(
            f"{job.image}: its files could not be written to {wanted.output}: {error.strerror}"
        ) from None
    if source.n_nonfinite:
        at_least = "" if source.is_counted else "at least "
        remark(
            f"{job.image}: {at_least}{source.n_nonfinite} values were NaN or infinite; "
            "the least finite one was taken for them"
        )
    return {
        "image": str(job.image),
        "axes": source.axes,
        "shape": list(result.labels.shape),
        **{kind: str(path) for kind, path in paths.items()},
        "classes": [
            {"value": value, "name": spec.name, "share": share}
            for value, (spec, share) in enumerate(zip(result.classes, result.shares(), strict=True))
        ],
        "nonfinite": source.n_nonfinite,
        "seconds": {**result.timings, "total": time.perf_counter() - started},
    }


def _to_write(job: Job, wanted: Wanted, paths: dict[str, Path], inputs: set[Path]) -> dict[str, Path]:
    """Return those of the paths that are to be written.

    What is there is looked for once more: a run takes hours, in which people correct labels.
    """
    for path in paths.values():
        if path.resolve() in inputs:
            raise ValueError(
                f"{path} is one of the images and must not be overwritten: choose another folder"
            )
    there = {} if wanted.existing == "overwrite" else outputs_there(job, wanted, inputs)
    if there and wanted.existing == "refuse":
        raise FileExistsError(_in_the_way(list(there.values())))
    return {kind: path for kind, path in paths.items() if kind not in there}


def _extra_features(job: Job, wanted: Wanted, shape: tuple[int, ...]) -> Any:
    """Read what goes with an image, in widths, ``[E, *stack, H, W]``; None if there is to be nothing."""
    import numpy as np

    from napari_crfasrnn.imaging import IMAGE_SUFFIXES, read_image

    path = wanted.extra
    if path is None:
        return None
    if path.is_dir():
        same = [
            file
            for file in sorted(path.iterdir())
            if file.stem == job.image.stem and file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        ]
        if not same:
            raise ValueError(f"--extra must hold a file for each image, got none for {job.image} in {path}")
        path = min(same, key=lambda file: IMAGE_SUFFIXES.index(file.suffix.lower()))
    array = np.asarray(read_image(path).array)
    if array.shape[:-1] == shape:  # channels come last in a picture
        array = np.moveaxis(array, -1, 0)
    return array.astype(np.float32) / wanted.extra_width


def _segment_video(
    segmenter: Segmenter, job: Job, wanted: Wanted, inputs: set[Path], progress: Progress | None
) -> dict[str, Any]:
    from napari_crfasrnn.cli.video import segment_video

    unfit = (
        ("entropy", wanted.entropy),
        ("probabilities", wanted.probabilities),
        ("extra", wanted.extra is not None),
    )
    for kind, is_wanted in unfit:
        if is_wanted:
            raise ValueError(f"--{kind} is for images, not for a video: {job.image}")
    if wanted.axes is not None:
        raise ValueError(f"--axes is for images; those of a video are known: {job.image}")
    paths = output_paths(job, wanted, is_stack=True, n_labels=segmenter.model.n_labels)
    missing = _to_write(job, wanted, paths, inputs)
    told = segment_video(
        segmenter,
        job.image,
        missing.get("labels"),
        missing.get("overlay"),
        crf=wanted.crf,
        progress=progress,
    )
    return told | {kind: str(path) for kind, path in paths.items()}


def _write(result: Segmentation, source: ImageSource, paths: dict[str, Path]) -> None:
    import numpy as np

    from napari_crfasrnn.classes import has_background
    from napari_crfasrnn.cli.output import overlay, save_labels_png, save_picture, save_tiff

    colors = [spec.color for spec in result.classes]
    axes = "".join(letter for letter in source.axes if letter in "TZ") + "YX"
    spacing = _in_order(source, axes)
    if "labels" in paths and paths["labels"].suffix == ".png":
        save_labels_png(paths["labels"], result.labels, colors)
    elif "labels" in paths:
        save_tiff(paths["labels"], result.labels, axes, spacing)
    if "entropy" in paths:
        save_tiff(paths["entropy"], result.entropy, axes, spacing)
    if result.marginals is not None:
        save_tiff(paths["probabilities"], result.marginals, "C" + axes, spacing)
    if "overlay" in paths:
        background = 0 if has_background(result.classes) else None
        pictures = np.stack(
            [
                overlay(source.plane(index), result.labels[index], colors, background=background)
                for index in source.indices()
            ]
        )
        if paths["overlay"].suffix == ".png":
            save_picture(paths["overlay"], pictures[0])
        else:
            save_tiff(paths["overlay"], pictures.reshape(*result.labels.shape, 3), axes + "S", spacing)


def _in_order(source: ImageSource, axes: str) -> tuple[float, ...] | None:
    """Return the voxel size in the order of the output's axes."""
    if source.spacing is None:
        return None
    size = dict(zip((a for a in source.axes if a in "ZYX"), source.spacing, strict=True))
    return tuple(size[letter] for letter in axes if letter in "ZYX")


def _sentence(result: dict[str, Any]) -> str:
    shares = sorted(result["classes"], key=lambda entry: -entry["share"])
    shown = ", ".join(f"{e['name']} {e['share']:.1%}" for e in shares[:5] if e["share"] >= SHOWN_SHARE)
    return f"{result['image']} -> {result['labels']}  ({shown}; {result['seconds']['total']:.1f} s)"
