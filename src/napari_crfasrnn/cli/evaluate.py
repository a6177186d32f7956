"""``napari-crfasrnn evaluate``: how good a model is, before and after its CRF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_crfasrnn.cli.reporting import check_output, fail, one_sentence, print_json, progress_bar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from napari_crfasrnn.classes import ClassSpec
    from napari_crfasrnn.training.evaluation import Evaluation, Judged

SPLITS = ("val", "train", "all")
WRONG, PUT_RIGHT, UNLABELLED = (220, 50, 32), (0, 170, 80), (128, 128, 128)


def evaluate(
    model: Annotated[str, typer.Argument(help="Name or file of a model.")],
    data: Annotated[
        Path, typer.Option("--data", "-d", help="Folder of images with masks, in VOC's or the plain layout.")
    ],
    classes: Annotated[
        str | None, typer.Option(help="Only these classes of the data, separated by commas.")
    ] = None,
    others: Annotated[
        str, typer.Option(help="What pixels of other classes are: background or ignore.")
    ] = "background",
    split: Annotated[str, typer.Option(help="Which list of images: val, train or all.")] = "val",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw the confusion matrix into this PNG file.")
    ] = None,
    errors: Annotated[
        Path | None,
        typer.Option("--errors", help="Folder for a picture of each image: truth, result, what is wrong."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers for machines.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Use at most this many processors; all if not given.")
    ] = None,
) -> None:
    """Measure a model on images with masks, before and after its CRF.

    IoU of each class, of all pixels, of those within 5 pixels of a true edge (band), and of the rims of
    the masks (Boundary IoU); their means, and accuracies.
    """
    if split not in SPLITS:
        fail(f"--split must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, got {split!r}")
    check_folder(data)
    check_output("--errors", errors)
    with one_sentence():
        result = _evaluate(model, data, classes, others, split, device, picture, errors, threads)
    if as_json:
        print_json(result.as_dict())
    else:
        typer.echo(table(result))


def check_folder(data: Path) -> None:
    """Leave if ``--data`` is not there: before torch is loaded, which takes seconds."""
    if not data.is_dir():
        fail(f"--data must be a folder, but there is none at {data}")


def parse_classes(classes: str | None) -> list[str] | None:
    """Split the names of ``--classes``."""
    if classes is None:
        return None
    return [name.strip() for name in classes.split(",") if name.strip()]


def check_others(others: str) -> Any:
    """Return ``--others`` if it is one of the two words; a ValueError says if not."""
    if others not in ("background", "ignore"):
        raise ValueError(f"--others must be background or ignore, got {others!r}")
    return others


def _evaluate(
    model: str,
    data: Path,
    classes: str | None,
    others: str,
    split: str,
    device: str,
    picture: Path | None,
    errors: Path | None,
    threads: int | None,
) -> Evaluation:
    from napari_crfasrnn.cli.output import save_picture
    from napari_crfasrnn.cli.segment import new_segmenter
    from napari_crfasrnn.training.data_sets import open_data_set
    from napari_crfasrnn.training.evaluation import Evaluation, Score, judge
    from napari_crfasrnn.training.figures import check_figure, draw_confusion

    if picture is not None:
        check_figure(picture)
    found = open_data_set(data)
    names = parse_classes(classes)
    if names is not None:
        found = found.with_classes(names, check_others(others))
    samples = {"val": found.val, "train": found.train, "all": found.train + found.val}[split]
    if not samples:
        raise ValueError(f"the list {split} of {data} must hold an image, got none")
    loaded = new_segmenter(model, device, threads, option="MODEL").model
    before = after = Score.nothing(loaded.n_labels)
    with progress_bar(len(samples), "Evaluating") as bar:
        for judged in judge(loaded, found, samples):
            before += Score.of(judged.before, judged.truth, loaded.n_labels)
            after += Score.of(judged.after, judged.truth, loaded.n_labels)
            if errors is not None:
                save_picture(
                    errors / f"{judged.sample.name}_errors.png", errors_picture(judged, loaded.classes)
                )
            bar.next()
    result = Evaluation(loaded.classes, len(samples), before, after)
    if not after.confusion.any():
        raise ValueError(f"the masks of {data} must label pixels, got only unlabelled ones (255) in {split}")
    if picture is not None:
        draw_confusion(result, picture)
    return result


def table(result: Evaluation) -> str:
    """Return the numbers as a table in Markdown, before → after the CRF."""
    columns = [(s.iou(), s.band_iou(), s.boundary_iou()) for s in (result.before, result.after)]
    rows = ["| class | IoU | band IoU | boundary IoU |", "| --- | --- | --- | --- |"]
    for value, spec in enumerate(result.classes):
        cells = [_pair(first[value], second[value]) for first, second in zip(*columns, strict=True)]
        rows.append(f"| {spec.name} | {' | '.join(cells)} |")
    rows += ["", f"| {result.n_images} images | before the CRF | after | gain |", "| --- | --- | --- | --- |"]
    before, after = result.before.summary(), result.after.summary()
    for name in before:
        gain = after[name] - before[name]
        rows.append(f"| {name} | {before[name]:.4f} | {after[name]:.4f} | {gain:+.4f} |")
    return "\n".join(rows)


def _pair(before: float, after: float) -> str:
    return "–" if before != before and after != after else f"{before:.3f} → {after:.3f}"


def errors_picture(judged: Judged, classes: tuple[ClassSpec, ...]) -> NDArray[np.uint8]:  # [H, 4 W, 3]
    """Return a picture of an image: as it is, the truth, the result, and what is wrong.

    In the last part right pixels are dim. Wrong ones are red, those that the CRF put right green, and
    unlabelled ones grey.
    """
    import numpy as np

    from napari_crfasrnn.classes import has_background
    from napari_crfasrnn.cli.output import overlay

    colors = [spec.color for spec in classes]
    background = 0 if has_background(classes) else None
    plain = overlay(judged.image, np.full(judged.truth.shape, 255, np.uint8), colors)
    parts = [
        plain,
        *(overlay(judged.image, x, colors, background=background) for x in (judged.truth, judged.after)),
    ]
    wrong, was_wrong = judged.after != judged.truth, judged.before != judged.truth
    shown = plain // 3
    for color, where in (
        (WRONG, wrong),
        (PUT_RIGHT, was_wrong & ~wrong),
        (UNLABELLED, judged.truth == 255),
    ):
        shown[where] = color
    return np.concatenate([*parts, shown], axis=1)
