"""``napari-crfasrnn models``: list, download, verify."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from napari_crfasrnn.cli.reporting import complain, describe, one_sentence, print_json, remark

AsJson = Annotated[bool, typer.Option("--json", help="Print for machines.")]

models = typer.Typer(help="The models that can be named.", no_args_is_help=True)


@models.command("list")
def models_list(as_json: AsJson = False) -> None:
    """List the models that --model takes by name, and those that can be downloaded."""
    from napari_crfasrnn.zoo import unreachable_models

    with one_sentence():
        entries = model_facts(downloadable=True)
        for path in unreachable_models():
            remark(
                f"{path} is not used: the name {path.stem} is taken by a model of the package; rename "
                "the file, or give its path as --model"
            )
    if as_json:
        print_json(entries)
        return
    for entry in entries:
        typer.echo(f"{entry['name']}: {without_name(entry['title'], entry['name'])}")
        if not entry["here"]:
            typer.echo(f"  not here yet: napari-crfasrnn models download {entry['name']}")
        else:
            typer.echo(f"  {entry['path']}")
        if entry["problem"]:
            typer.echo(f"  cannot be loaded: {entry['problem']}")
            continue
        typer.echo(f"  {len(entry['classes'])} classes: {', '.join(entry['classes'])}")
        typer.echo(f"  licence: {entry['licence']}")


@models.command("download")
def models_download(
    name: Annotated[str, typer.Argument(help="Which model; models list has the names.")],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the licence of the weights without being asked.")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="A file you have, the address of the file, or (ending in /) of a folder that holds it.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download a published model, from where an earlier attempt stopped."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from napari_crfasrnn.zoo import Licence, download_model, is_accepted, published_model

    def ask(licence: Licence) -> bool:
        if accept_licence or not sys.stdin.isatty():
            return accept_licence
        typer.echo(f"{licence.title}. {licence.text}", err=True)
        return typer.confirm("Do you accept this licence?", err=True)

    with one_sentence():
        model = published_model(name)
        # asked before the progress bar takes the terminal
        accepted = is_accepted(model.licence) or ask(model.licence)
        console = Console(stderr=True)
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(model.file_name, total=model.size)
            result = download_model(
                name,
                accept_licence=accepted,
                source=source,
                progress=lambda done, total: bar.update(task, completed=done, total=total or model.size),
            )
    if as_json:
        about = {"name": name, "path": str(result.path), "hash": result.hash}
        print_json({**about, "hash_is_published": result.is_published_hash})
        return
    typer.echo(f"{name}: {result.path}")
    typer.echo(f"  {result.hash} ({_whose(result.is_published_hash)})")
    typer.echo(f"  licence: {model.licence.title}")


@models.command("verify")
def models_verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Which models; all that are here if none.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check models: downloaded ones against their hash, others by loading them."""
    from napari_crfasrnn.zoo import list_models, load_model, verify_download

    entries = {entry.name: entry for entry in list_models(downloadable=bool(names))}
    found: list[dict[str, Any]] = []
    for name in names or entries:
        result: dict[str, Any] = {"name": name, "ok": True, "says": "loads"}
        try:
            if name in entries and entries[name].published is not None:
                download = verify_download(name)
                result["says"] = f"{download.hash} ({_whose(download.is_published_hash)})"
            else:
                load_model(name)
        except (ValueError, OSError, RuntimeError) as error:
            result |= {"ok": False, "says": describe(error)}
        found.append(result)
        if as_json:
            continue
        if result["ok"]:
            typer.echo(f"{name}: {result['says']}")
        else:
            complain(f"{name}: {result['says']}")
    if as_json:
        print_json(found)
    if not all(result["ok"] for result in found):
        raise typer.Exit(2)


def model_facts(*, downloadable: bool = False) -> list[dict[str, Any]]:
    """Return what there is to say about each model, as JSON can hold it."""
    from napari_crfasrnn.zoo import list_models

    return [
        {
            "name": entry.name,
            "title": entry.title,
            "path": str(entry.path),
            "classes": list(entry.class_names),
            "licence": entry.licence,
            "shipped": entry.shipped,
            "here": entry.is_here,
            "problem": entry.problem,
        }
        for entry in list_models(downloadable=downloadable)
    ]


def without_name(title: str, name: str) -> str:
    """Return a title that stands behind a name: without the name, if it begins with that."""
    return title[len(name) + 2 :] if title.lower().startswith(f"{name.lower()}: ") else title


def _whose(is_published: bool) -> str:
    return "as published" if is_published else "no hash is published; this one is remembered"
