"""The direction of imports, and what importing the package costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import napari_crfasrnn

PACKAGE = Path(napari_crfasrnn.__file__).parent

# Each room, and the rooms of ours that it may import from when it is loaded.
CORE_RANKS = [
    {"palette", "progress", "samples", "shortage", "tracing"},
    {"classes"},
    {"config", "imaging", "metrics", "edits", "_ext", "_reference"},
    {"lattice"},
    {"feature_filter", "mean_field"},
    {"kernels", "plane_logits"},
    {"definition"},
    {"crf", "encoder", "frames", "shared_encoder"},
    {"deeplab", "higher_order"},
    {"fcn"},
    {"fcn_fine"},
    {"experts", "regrowing"},
    {"network"},
    {"checkpoint"},
    {"importing"},
    {"zoo"},
    {"segmenter", "project"},
    {"training"},
]
GUI_PACKAGES = {"napari", "qtpy", "superqt", "magicgui", "pyqtgraph", "vispy", "npe2", "PyQt6", "PySide6"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_imports(path: Path) -> set[tuple[str, bool]]:
    """Return the modules a file imports, each with whether it does so when it is loaded."""
    found: set[tuple[str, bool]] = set()

    def visit(node: ast.AST, at_load: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inner = at_load
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                inner = False
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                inner = False
            if isinstance(child, ast.Import):
                found.update((alias.name, at_load) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.level:
                pytest.fail(f"{path.name} has a relative import: write the full name")
            elif isinstance(child, ast.ImportFrom) and child.module == "napari_crfasrnn":
                found.update((f"napari_crfasrnn.{alias.name}", at_load) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                found.add((child.module, at_load))
            visit(child, inner)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def rank(room: str) -> int:
    for position, rooms in enumerate(CORE_RANKS):
        if room in rooms:
            return position
    return len(CORE_RANKS)


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    if room in {"__init__", "__main__"}:
        return
    for module, at_load in module_imports(path):
        if not module.startswith("napari_crfasrnn."):
            continue
        other = module.split(".")[1]
        if other == room or other == "__version__":
            continue
        if room in {"cli", "_qt"}:
            assert other not in {"cli", "_qt"}, f"{room} must not import {module}"
        elif at_load:
            assert other not in {"cli", "_qt"}, f"the core ({room}) must not import {module}"
            assert rank(other) < rank(room), f"{room} must not import {module}: the arrow runs the other way"
        if other == "_ext":
            assert room in {"lattice", "mean_field", "experts", "_ext"}, (
                f"only lattice, mean_field and experts import the extension, not {room}"
            )


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_core_knows_no_gui(path: Path) -> None:
    room = room_of(path)
    allowed = GUI_PACKAGES if room == "_qt" else {"napari"} if room == "cli" else set()
    for module, at_load in module_imports(path):
        top = module.split(".")[0]
        if top in GUI_PACKAGES:
            assert top in allowed, f"{room} must not import {module}"
            assert room == "_qt" or not at_load, f"{room} must import {module} only when it is needed"


def test_every_room_has_a_place() -> None:
    rooms = {room_of(path) for path in python_files()} - {"__init__", "__main__", "cli", "_qt"}
    assert rooms == set().union(*CORE_RANKS)


def test_package_import_is_light() -> None:
    code = (
        "import sys, json; before = set(sys.modules); import napari_crfasrnn; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    heavy = {"torch", "numpy", "qtpy", "napari", "pydantic", "skimage"} & {
        name.split(".")[0] for name in loaded
    }
    assert not heavy
    assert len(loaded) < 60, f"the package pulls in {len(loaded)} modules on import"


def test_public_names_exist_and_are_documented() -> None:
    for name in napari_crfasrnn.__all__:
        thing = getattr(napari_crfasrnn, name)
        if name != "__version__":
            assert thing.__doc__, f"{name} has no docstring"


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        napari_crfasrnn.no_such_name  # noqa: B018
