"""``python -m napari_crfasrnn``: the command line, where its script is not on the path."""

from __future__ import annotations

from napari_crfasrnn.cli import app

app(prog_name="napari-crfasrnn")
