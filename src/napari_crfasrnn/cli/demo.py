"""``napari-crfasrnn demo``: a bundled photograph, segmented, in a napari window."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from napari_crfasrnn.cli.jobs import Job, Wanted
from napari_crfasrnn.cli.reporting import check_output, fail, one_sentence
from napari_crfasrnn.cli.segment import new_segmenter, segment_file

PHOTOGRAPH = "astronaut"
WIDGET = "Segmentation"
PATIENCE = 180.0  # seconds until a window that does not come to an end is given up
ENDS = {"segment", "failed", "cancelled"}  # what the widget says at the end of a segmentation
WINDOW_SIZE = (1366, 768)  # pixels, a small laptop's


def demo(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the label files and the screenshot, in place of those of an earlier demo.",
        ),
    ] = Path("demo"),
    window: Annotated[bool, typer.Option(help="Show the result in a napari window.")] = True,
    keep_open: Annotated[
        bool | None,
        typer.Option(
            "--keep-open/--close",
            help="Leave the window open. If neither is given: only when a person is at the terminal, "
            "with a real display.",
        ),
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Name or file of a model.")] = "starter",
) -> None:
    """Segment a bundled photograph, write its labels, and show both in a napari window."""
    from napari_crfasrnn.cli.output import save_picture
    from napari_crfasrnn.samples import sample

    check_output("--output", output)
    with one_sentence():
        photograph = output / f"{PHOTOGRAPH}.png"
        save_picture(photograph, sample(PHOTOGRAPH))
        segmenter = new_segmenter(model, "auto", None)
        wanted = Wanted(output, overlay=True, entropy=True, existing="overwrite")
        result = segment_file(segmenter, Job(photograph, PHOTOGRAPH, True), wanted, {photograph.resolve()})
    for kind in ("labels", "overlay", "entropy"):
        typer.echo(f"{kind}: {result[kind]}")
    if not window:
        return
    if keep_open is None:
        keep_open = _somebody_is_there()
    screenshot = output / "screenshot.png"
    if keep_open:
        typer.echo("Close the window to end the demo.")
    _show(screenshot, keep_open)
    typer.echo(f"screenshot: {screenshot}")


def _somebody_is_there() -> bool:
    virtual = "xvfb-run" in os.environ.get("XAUTHORITY", "")  # that is where xvfb-run keeps its keys
    return sys.stdin.isatty() and not virtual and not os.environ.get("CI")


def _show(screenshot: Path, keep_open: bool) -> None:
    """Open a window as a person would, let the widget segment, and take a picture of it."""
    if sys.platform.startswith("linux") and not any(
        os.environ.get(v) for v in ("DISPLAY", "WAYLAND_DISPLAY")
    ):
        fail(
            'there is no display: put xvfb-run -a -s "-screen 0 1600x1000x24" before the command, '
            "or use --no-window"
        )
    try:
        import napari
        from napari.qt.threading import create_worker
    except ImportError as error:
        fail(f'the window needs napari: pip install "napari-crfasrnn[all]", or use --no-window ({error})')

    from napari_crfasrnn.cli.output import save_picture
    from napari_crfasrnn.samples import open_astronaut

    viewer = napari.Viewer(title="napari-crfasrnn")
    viewer.window.resize(*WINDOW_SIZE)
    [(data, arguments, _)] = open_astronaut()
    viewer.add_image(data, **arguments)
    with one_sentence():  # an installation without its manifest
        _, widget = viewer.window.add_plugin_dock_widget("napari-crfasrnn", WIDGET)
    ended: list[str] = []
    pictures: list[Any] = []

    def wait() -> Iterator[str]:
        """Yield in a thread, for the window to go on in its own, until the labels are drawn."""
        given_up = time.monotonic() + PATIENCE
        while not ENDS & set(ended) and time.monotonic() < given_up:
            time.sleep(0.1)
        time.sleep(1.0)
        yield "drawn"

    def take_picture(_: str) -> None:
        pictures.append(viewer.screenshot(canvas_only=False, flash=False)[..., :3])
        if not keep_open or "segment" not in ended:
            viewer.close()

    widget.finished.connect(ended.append)
    worker = create_worker(wait, _start_thread=False)
    worker.yielded.connect(take_picture)
    widget.segment()
    worker.start()
    napari.run()
    if not pictures:
        fail("the window was closed before the photograph was segmented")
    with one_sentence():
        save_picture(screenshot, pictures[0])
    if ended != ["segment"]:
        fail(
            f"the widget did not segment the photograph ({', '.join(ended) or 'no answer'}): see {screenshot}"
        )
