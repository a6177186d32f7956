"""What the images of a project are called as files: by names that every file system and list takes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import PurePath

from napari_crfasrnn.imaging import IMAGE_SUFFIXES
from napari_crfasrnn.project.items import Item

_MOST_BYTES = 180  # of a name; file systems take 255, and the place in a stack and a suffix follow
_FORBIDDEN = frozenset('<>:"/\\|?*')  # on Windows
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # also there, with any suffix


def plane_names(items: Sequence[Item]) -> Iterator[tuple[str, list[str]]]:
    """Give the name of each image, and the names of its planes: NAME, or NAME_t003_z012 in a stack.

    No two names are alike, also where capitals and small letters count the same. They depend on the images
    alone and not on what is labelled, so those of a later export are the same.
    """
    taken: set[str] = set()
    for item in items:
        name = _safe(item.name) or f"image_{item.id}"
        for number in count(1):
            whole = name if number == 1 else f"{name}_{number}"
            planes = [f"{whole}{place}" for place in _places(item)]
            keys = {plane.casefold() for plane in (whole, *planes)}
            if not keys & taken:
                break
        taken |= keys
        yield whole, planes


def _places(item: Item) -> Iterator[str]:
    letters = [letter.lower() for letter in item.axes if letter in "TZ"]
    widths = [max(3, len(str(size - 1))) for size in item.stack_shape]
    for index in item.indices():
        yield "".join(
            f"_{letter}{place:0{width}}" for letter, place, width in zip(letters, index, widths, strict=True)
        )


def _safe(name: str) -> str:
    """Return a name without what a file system or a list of names cannot hold; it may be empty."""
    if PurePath(name).suffix.lower() in IMAGE_SUFFIXES:
        name = name[: -len(PurePath(name).suffix)]
    # One of the ways to write é; blanks and control characters would end a name in a list.
    letters = (
        "_" if letter in _FORBIDDEN or unicodedata.category(letter)[0] in "CZ" else letter
        for letter in unicodedata.normalize("NFC", name.strip())
    )
    safe = "".join(letters).encode()[:_MOST_BYTES].decode(errors="ignore").strip(".")
    return f"{safe}_" if _RESERVED.fullmatch(safe) else safe
