"""Names of classes in a line of text, with commas between."""

from __future__ import annotations

import csv
from collections.abc import Iterable


def in_a_line(names: Iterable[str]) -> str:
    """Return names with commas between them; those that hold a comma in quotation marks."""
    return ", ".join(
        f'"{name.replace(chr(34), 2 * chr(34))}"' if set(name) & {",", '"'} else name for name in names
    )


def from_a_line(text: str) -> list[str]:
    """Return the names in a line; what stands in quotation marks is one.

    Raises
    ------
    ValueError
        If a quotation mark has no partner.
    """
    try:
        return next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise ValueError(
            f"names must have commas between them, and quotation marks in pairs: {error}"
        ) from error
