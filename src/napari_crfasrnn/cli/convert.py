"""``napari-crfasrnn convert``: a model of another system in, a file of ours out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from napari_crfasrnn.cli.reporting import fail, one_sentence, print_json, remark


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="The model: .pth (PyTorch), .caffemodel (Caffe), .h5 (Keras), .mat (MatConvNet).",
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write, ending in .safetensors.")],
    classes: Annotated[
        str | None,
        typer.Option(
            help="Names of the classes in the order of the outputs, with commas between: "
            "background,bird,bottle. For 21 outputs PASCAL VOC's if not given."
        ),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Take what matches; the rest starts as in a new model.")
    ] = False,
    title: Annotated[str | None, typer.Option(help="What lists of models shall call it.")] = None,
    licence: Annotated[str | None, typer.Option(help="Terms of the weights, to be shown with them.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report for machines.")] = False,
) -> None:
    """Convert a CRF-RNN of another system, and report what became of each of its tensors.

    A tensor without counterpart is an error, unless --allow-partial is given.
    """
    from napari_crfasrnn.checkpoint import SUFFIX, load_checkpoint
    from napari_crfasrnn.importing import ImportMismatchError, import_model

    if output.suffix != SUFFIX:
        fail(f"OUT must end in {SUFFIX}, got {output.name!r}")
    if output.exists() and not overwrite:
        fail(f"{output} is there already: name another file, or add --overwrite")
    if source.suffix == SUFFIX:
        with one_sentence():
            load_checkpoint(source)  # says what it is, if it is none of ours
        fail(f"IN must be a model of another system, got {source.name!r}, which is one of ours already")
    names = None if classes is None else [name.strip() for name in classes.split(",")]
    with one_sentence():
        try:
            imported = import_model(source, classes=names, allow_partial=allow_partial)
        except ImportMismatchError as error:
            if as_json:
                print_json({"output": None, **error.report.as_dict()})
            raise
        given = {"title": title, "licence": licence}
        imported.model.provenance |= {key: value for key, value in given.items() if value is not None}
        imported.model.save(output)
    if as_json:
        print_json({"output": str(output), **imported.report.as_dict()})
        return
    for line in imported.report.lines():
        typer.echo(line)
    for warning in imported.report.warnings:
        remark(warning)
    typer.echo(f"{source} -> {output}")
