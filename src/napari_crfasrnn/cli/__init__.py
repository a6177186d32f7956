"""The command line ``napari-crfasrnn``.

Exit codes: 0 all is well; 2 what was asked for cannot be done, said in one sentence on standard
error; 130 interrupted. Commands import what they need when they run, so that ``--help`` is quick.
"""

from __future__ import annotations

from typing import Annotated

import typer

from napari_crfasrnn import __version__
from napari_crfasrnn.cli.convert import convert
from napari_crfasrnn.cli.demo import demo
from napari_crfasrnn.cli.evaluate import evaluate
from napari_crfasrnn.cli.export import export
from napari_crfasrnn.cli.info import info
from napari_crfasrnn.cli.models import models
from napari_crfasrnn.cli.segment import segment
from napari_crfasrnn.cli.train import train

__all__ = ["app"]

app = typer.Typer(
    name="napari-crfasrnn",
    help="Segment images with a CRF-RNN, without a window. The same is in napari: Layers > Segment.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(segment)
app.command()(train)
app.command()(evaluate)
app.command()(export)
app.command()(demo)
app.command()(info)
app.command()(convert)
app.add_typer(models, name="models")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Segment images with a CRF-RNN, without a window. The same is in napari: Layers > Segment."""
