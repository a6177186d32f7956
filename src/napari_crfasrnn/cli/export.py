"""``napari-crfasrnn export``: a project in, a training set out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from napari_crfasrnn.cli.reporting import fail, one_sentence, print_json, progress_bar, remark


def export(
    project: Annotated[Path, typer.Argument(metavar="PROJECT", help="Folder of a project.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the training set: a new or an empty one.")
    ],
    labels: Annotated[
        str, typer.Option(help="all, or settled: only what a person painted, corrected or verified.")
    ] = "all",
    val_share: Annotated[
        float, typer.Option("--val-share", help="Share of the images to validate with; 0: none.")
    ] = 0.2,
    layout: Annotated[
        str, typer.Option(help="plain (images and masks, as train reads them) or coco (JSON).")
    ] = "plain",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result for machines.")] = False,
) -> None:
    """Write a project as a training set: images, masks, classes, and lists to train on and validate with.

    The project is only read, so it may be open in napari.
    """
    if not project.is_dir():
        fail(f"PROJECT must be the folder of a project, but there is none at {project}")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        fail(f"--output must be a new or empty folder, got {output}")
    with one_sentence():
        done = _export(project, output, labels, val_share, layout)
    if as_json:
        print_json(
            {
                "output": str(done.path),
                "images": done.n_images,
                "train": done.n_train,
                "val": done.n_val,
                "left out": done.n_left_out,
                "notes": done.notes,
            }
        )
        return
    for note in done.notes:
        remark(f"{note}.")
    typer.echo(f"{output}: {done.summary}")


def _export(project: Path, output: Path, labels: Any, val_share: float, layout: Any) -> Any:
    from napari_crfasrnn.project import Project, export_project

    with Project.open(project, read_only=True) as found, progress_bar(1, "Exporting") as bar:
        return export_project(
            found, output, labels=labels, val_share=val_share, layout=layout, progress=bar.within
        )
