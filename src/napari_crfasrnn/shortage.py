"""Where memory does not suffice.

What the system gives away and then does not have, it takes back by ending the process, with all that is
open. So what is sure not to fit is refused before it is begun.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil

CURES = "cut it into parts, make it smaller, or take a model of fewer classes"
# Bytes for each pixel that the CRF sees at a time: in any case, and for each class; and for each pixel of the
# image. Less than was seen with 2 to 21 classes, so that nothing that fits is refused; docs/cli.md says what
# it takes.
_CRF = (140, 14)
_PLANE = 10
_IN_FRAME = 8  # for each class: in a demo's frame there are logits of all pixels before and after the CRF


class MemoryShortageError(MemoryError):
    """An image does not fit into memory; the text says what it takes and what is free."""


def require_memory(
    size: tuple[int, int],
    n_labels: int,
    crf_pixels: int,
    *,
    is_framed: bool = False,
    release: Callable[[], None],
) -> None:
    """Make sure that a plane can be segmented on the processor in the memory that is free.

    Parameters
    ----------
    size
        Height and width.
    n_labels
        Number of classes L.
    crf_pixels
        How many of its pixels the CRF is to see at a time.
    is_framed
        Whether it is segmented in the frame of a demo.
    release
        Gives back what is kept for later; called where there is not enough.

    Raises
    ------
    MemoryShortageError
        If it does not fit for certain.
    """
    fixed, each = _CRF
    of_plane = _PLANE + _IN_FRAME * n_labels * is_framed
    needed = of_plane * size[0] * size[1] + crf_pixels * (fixed + each * n_labels)
    if needed <= _free():
        return
    release()
    free = _free()
    if needed > free:
        raise MemoryShortageError(
            f"an image of {size[0]} x {size[1]} pixels takes more than {needed / 1e9:.1f} GB of memory with "
            f"{n_labels} classes, and {free / 1e9:.1f} GB are free: {CURES}"
        )


def lack_of_memory(error: Exception) -> str | None:
    """Return what to say of an error if memory was lacking, else None."""
    if isinstance(error, MemoryShortageError):
        return str(error)
    # torch has no exception of its own for the memory of the processor
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"there is not enough memory for an image of this size and so many classes: {CURES}"
    return None


def _free() -> int:
    return int(psutil.virtual_memory().available + psutil.swap_memory().free)
