"""``napari-crfasrnn segment``: images in, label files out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_crfasrnn.cli.reporting import (
    BAD_INPUT,
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

OUTPUT_KINDS = ("labels", "overlay", "entropy", "probabilities")
SHOWN_SHARE = 0.005  # classes below it are not worth a word on the terminal


@dataclass(frozen=True)
class Job:
    """One image to segment."""

    image: Path
    name: str
    """How its output files begin."""
    named: bool
    """Whether the user named it, rather than its folder."""


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
    jobs = find_jobs(images)
    _check_files(jobs, output, as_json, model)  # before torch and the model are loaded, which takes seconds
    with one_sentence():
        segmenter = new_segmenter(model, device, threads, frame)
    wanted = Wanted(output, axes, crf, overlay, entropy, probabilities, extra, extra_width)
    inputs = {job.image.resolve() for job in jobs}
    done: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    failed_named = False
    with progress_bar(len(jobs), "Segmenting") as bar:
        for job in jobs:
            try:
                done.append(segment_file(segmenter, job, wanted, inputs, bar.within))
            except (ValueError, TypeError, RuntimeError, OSError, MemoryError) as error:
                reason = describe(error)
                skipped.append({"image": str(job.image), "reason": reason})
                failed_named |= job.named
                complain(reason if str(job.image) in reason else f"{job.image}: {reason}")
            else:
                if not as_json:
                    typer.echo(_sentence(done[-1]))
            bar.next()
    if as_json:
        print_json({"model": model, "results": done, "skipped": skipped})
    if failed_named or not done:
        raise typer.Exit(BAD_INPUT)


def _check_files(jobs: Sequence[Job], output: Path, as_json: bool, model: str) -> None:
    """Leave if the output can be no folder, or if none of the images is there."""
    if output.exists() and not output.is_dir():
        fail(f"--output must be a folder, got the file {output}")
    if any(job.image.exists() for job in jobs):
        return
    from napari_crfasrnn.cli.video import VIDEO_SUFFIXES

    skipped = []
    for job in jobs:
        kind = "video" if job.image.suffix.lower() in VIDEO_SUFFIXES else "image"
        skipped.append({"image": str(job.image), "reason": f"{kind} file not found: {job.image}"})
        complain(skipped[-1]["reason"])
    if as_json:
        print_json({"model": model, "results": [], "skipped": skipped})
    raise typer.Exit(BAD_INPUT)


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


def find_jobs(images: Sequence[Path]) -> list[Job]:
    """List the images of files and folders, each once, folders by their image files.

    In folders, what an earlier run wrote (``..._labels.png`` and so on) is no image.
    """
    from napari_crfasrnn.cli.video import VIDEO_SUFFIXES
    from napari_crfasrnn.imaging import IMAGE_SUFFIXES

    found: dict[Path, bool] = {}
    for path in images:
        if path.is_dir():
            inside = [
                file
                for file in sorted(path.iterdir())
                if file.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
                and not file.name.startswith(".")
                and not file.stem.endswith(tuple(f"_{kind}" for kind in OUTPUT_KINDS))
                and file.is_file()
            ]
            if not inside:
                fail(f"images must hold an image file, got a folder without one: {path}")
            for file in inside:
                found.setdefault(file, False)
        else:
            found[path] = True
    stems = Counter(path.stem for path in found)
    names = {path: path.stem if stems[path.stem] == 1 else path.name.replace(".", "_") for path in found}
    for name, count in Counter(names.values()).items():
        if count > 1:
            same = [str(path) for path in found if names[path] == name]
            fail(f"images must differ in name, since their labels go to one folder, got {' and '.join(same)}")
    return [Job(path, names[path], named) for path, named in found.items()]


def segment_file(
    segmenter: Segmenter, job: Job, wanted: Wanted, inputs: set[Path], progress: Progress | None = None
) -> dict[str, Any]:
    """Segment one image, write its files, and return what is to be told about it."""
    from napari_crfasrnn.cli.video import VIDEO_SUFFIXES
    from napari_crfasrnn.imaging import open_image, read_image

    if job.image.suffix.lower() in VIDEO_SUFFIXES:
        return _segment_video(segmenter, job, wanted, inputs, progress)
    started = time.perf_counter()
    read = read_image(job.image)
    spacing = read.spacing if wanted.axes in (None, read.axes) else None
    source = open_image(read.array, wanted.axes or read.axes, spacing)
    paths = _output_paths(job, wanted, bool(source.stack_shape), segmenter.model.n_labels)
    for path in paths.values():
        if path.resolve() in inputs:
            raise ValueError(
                f"{path} is one of the images and must not be overwritten: choose another folder"
            )
    shape = (*source.stack_shape, *source.plane_shape)
    segmenter.set_image(source, extra_features=_extra_features(job, wanted, shape))
    result = segmenter.predict(crf=wanted.crf, marginals=wanted.probabilities, progress=progress)
    try:
        _write(result, source, paths)
    except OSError as error:
        raise ValueError(
            f"{job.image}: its files could not be written to {wanted.output}: {error.strerror}"
        ) from None
    if source.n_nonfinite:
        remark(
            f"{job.image}: {source.n_nonfinite} values were NaN or infinite; "
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


def _extra_features(job: Job, wanted: Wanted, shape: tuple[int, ...]) -> Any:
    """Read what goes with an image, in widths, ``[E, *stack, H, W]``; None if there is to be nothing."""
    import numpy as np

    from napari_crfasrnn.imaging import IMAGE_SUFFIXES, read_image

    path = wanted.extra
    if path is None:
        return None
    if path.is_dir():
        same = [path / f"{job.image.stem}{suffix}" for suffix in IMAGE_SUFFIXES]
        found = next((file for file in same if file.is_file()), None)
        if found is None:
            raise ValueError(f"--extra must hold a file for each image, got none for {job.image} in {path}")
        path = found
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
    pictures = wanted.output / f"{job.name}_overlay.mp4" if wanted.overlay else None
    if pictures is not None and pictures.resolve() in inputs:
        raise ValueError(
            f"{pictures} is one of the images and must not be overwritten: choose another folder"
        )
    folder = wanted.output / f"{job.name}_labels"
    return segment_video(segmenter, job.image, folder, pictures, crf=wanted.crf, progress=progress)


def _output_paths(job: Job, wanted: Wanted, is_stack: bool, n_labels: int) -> dict[str, Path]:
    picture = "tif" if is_stack else "png"
    suffixes = {
        "labels": "tif" if n_labels > 256 else picture,
        "overlay": picture,
        "entropy": "tif",
        "probabilities": "tif",
    }
    asked = {
        "labels": True,
        "overlay": wanted.overlay,
        "entropy": wanted.entropy,
        "probabilities": wanted.probabilities,
    }
    return {
        kind: wanted.output / f"{job.name}_{kind}.{suffixes[kind]}" for kind in OUTPUT_KINDS if asked[kind]
    }


def _write(result: Segmentation, source: ImageSource, paths: dict[str, Path]) -> None:
    import numpy as np

    from napari_crfasrnn.cli.output import overlay, save_labels_png, save_picture, save_tiff

    colors = [spec.color for spec in result.classes]
    axes = "".join(letter for letter in source.axes if letter in "TZ") + "YX"
    spacing = _in_order(source, axes)
    if paths["labels"].suffix == ".png":
        save_labels_png(paths["labels"], result.labels, colors)
    else:
        save_tiff(paths["labels"], result.labels, axes, spacing)
    if "entropy" in paths:
        save_tiff(paths["entropy"], result.entropy, axes, spacing)
    if result.marginals is not None:
        save_tiff(paths["probabilities"], result.marginals, "C" + axes, spacing)
    if "overlay" in paths:
        background = 0 if result.classes[0].name.lower() == "background" else None
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
