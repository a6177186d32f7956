"""Files that are either all there or not at all: written aside, flushed, renamed.

Arrays are TIFF files (zlib inside), so that every image program opens them without us.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray

PART_SUFFIX = ".part"
_COPY_BYTES = 2**20
_BIG_TIFF_BYTES = 2**31  # well below the 4 GiB that 32-bit offsets reach


class SaveError(OSError):
    """The project could not be written; its previous state is untouched and readable."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn what a full or broken disk raises into one sentence that names the path.

    Raises
    ------
    SaveError
        For any `OSError`, and for SQLite's reports of a full or failing disk.
    """
    try:
        yield
    except SaveError:
        raise
    except OSError as error:
        raise SaveError(error.errno, _sentence(path, error.strerror or str(error)), str(path)) from error
    except sqlite3.OperationalError as error:
        raise SaveError(None, _sentence(path, str(error)), str(path)) from error


def _sentence(path: Path, reason: str) -> str:
    reason = reason[:1].lower() + reason[1:]
    return (
        f"the project at {path} could not be saved ({reason}): it keeps its last saved state, "
        "make room or choose another place and save again"
    )


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Create a file: it is never seen in part, and durable, bytes and name, when this returns."""

    def save(part: Path) -> None:
        with part.open("w+b") as file:
            write(file)

    save_file(path, save)


def save_file(path: Path, save: Callable[[Path], None]) -> None:
    """Create a file with a function that takes a path, with the guarantees of `write_file`."""
    part = path.with_name(f"{path.stem}{PART_SUFFIX}{path.suffix}")
    with ExitStack() as undo:
        undo.callback(remove_files, path.parent, [part.name, path.name])
        save(part)
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
        undo.pop_all()


def copy_file(source: Path, target: Path) -> None:
    """Copy a file so that the copy is on the disk when this returns."""
    with source.open("rb") as file, target.open("wb") as copy:
        shutil.copyfileobj(file, copy, _COPY_BYTES)
        copy.flush()
        os.fsync(copy.fileno())


def require_free(path: Path) -> None:
    """Check that a project can be made here.

    Raises
    ------
    FileExistsError
        If the path is taken by anything but an empty folder.
    """
    if path.is_dir():
        if any(path.iterdir()):
            raise FileExistsError(f"path must be a new or empty folder, got one that holds something: {path}")
    elif path.exists():
        raise FileExistsError(f"path must be a new or empty folder, got a file: {path}")


def publish_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Create a folder whole or not at all: filled beside its place, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{path.name}_{secrets.token_hex(6)}{PART_SUFFIX}"
    part.mkdir()
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, part, ignore_errors=True)
        fill(part)
        for folder in (*(entry for entry in part.iterdir() if entry.is_dir()), part):
            sync_folder(folder)
        # It is free: what is there from now on is ours.
        undo.callback(shutil.rmtree, path, ignore_errors=True)
        if path.is_dir():  # empty; Windows does not rename onto it
            path.rmdir()
        os.replace(part, path)
        sync_folder(path.parent)
        undo.pop_all()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; Windows does so by itself and cannot be asked."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_array(folder: Path, stem: str, array: NDArray[Any], *, level: int) -> str:
    """Write an array under a name that was never used before and return the name.

    Parameters
    ----------
    folder, stem
        Where, and how the name begins.
    array
        Any numeric array; booleans are stored as bytes.
    level
        zlib's compression level, 1 (fast) to 9 (small).
    """
    name = f"{stem}_{secrets.token_hex(6)}.tif"
    stored = array.view(np.uint8) if array.dtype == np.bool_ else array
    stored = np.ascontiguousarray(stored).astype(stored.dtype.newbyteorder("="), copy=False)
    colour = stored.ndim >= 3 and stored.shape[-1] in (3, 4) and stored.dtype.kind == "u"
    photometric = "rgb" if colour and stored.dtype.itemsize <= 2 else "minisblack"
    plane = stored.shape[-3:] if colour else stored.shape[-2:]
    n_pages = int(np.prod(stored.shape[: -len(plane)]))
    stored = stored.reshape((n_pages, *plane) if n_pages > 1 else plane)  # tifffile trips over many axes of 1

    def write(file: BinaryIO) -> None:
        tifffile.imwrite(
            file,
            stored,
            compression="zlib",
            compressionargs={"level": level},
            photometric=photometric,
            bigtiff=stored.nbytes > _BIG_TIFF_BYTES,
        )

    write_file(folder / name, write)
    return name


def read_array(path: Path, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Read an array that `write_array` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged or holds something else.
    """
    try:
        array = tifffile.imread(path)
    except FileNotFoundError:
        raise
    except (tifffile.TiffFileError, ValueError, KeyError, IndexError, OSError) as error:
        raise ValueError(
            f"{path} must be an array of this project, but it cannot be read: {error}"
        ) from error
    if array.size != int(np.prod(shape)):
        raise ValueError(
            f"{path} must hold an array of shape {shape}, got {array.shape}: the file was changed"
        )
    return np.asarray(array.reshape(shape).astype(dtype, copy=False))


def remove_files(folder: Path, names: list[str]) -> None:
    """Remove files that nothing refers to any more; one that resists is cleared at the next opening."""
    for name in names:
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)
