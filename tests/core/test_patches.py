"""The next square to correct: against an exhaustive search, and as somebody goes through an image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_crfasrnn.edits import least_certain_patch, patch_side

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)
# Few values, so that many squares are alike; NaN is what was never predicted.
values = st.sampled_from([0.0, 0.25, 0.5, 1.0, np.nan])


@st.composite
def planes(draw) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(shapes)
    uncertainty = draw(hnp.arrays(np.float32, shape, elements=values))
    return uncertainty, draw(hnp.arrays(bool, shape))


def exhaustive(uncertainty: np.ndarray, settled: np.ndarray, side: int):
    """Look at every square, one after another; the sums are of quarters, so they are exact."""
    is_open = np.isfinite(uncertainty) & ~settled
    if not is_open.any():
        return None
    height, width = uncertainty.shape
    step = max(1, side // 8)

    def starts(size: int) -> list[int]:
        return [
            start for start in range(max(1, size - side + 1)) if start % step == 0 or start == size - side
        ]

    best = None
    for y in starts(height):
        for x in starts(width):
            part = np.s_[y : y + side, x : x + side]
            levels = np.rint(np.where(is_open, uncertainty, 0)[part].astype(float) * 65535)
            key = (levels.sum(), np.count_nonzero(is_open[part]))
            if best is None or key > best[0]:
                best = key, (y, x, min(y + side, height), min(x + side, width))
    return best


@given(planes(), st.integers(1, 30))
def test_it_is_the_best_of_all_squares(plane, side) -> None:
    uncertainty, settled = plane
    found, best = least_certain_patch(uncertainty, settled, side=side), exhaustive(uncertainty, settled, side)
    if best is None:
        assert found is None
        return
    (total, n_open), box = best
    assert found.box == box
    assert found.n_open == n_open
    y0, x0, y1, x1 = box
    assert found.uncertainty == pytest.approx(total / 65535 / ((y1 - y0) * (x1 - x0)))
    assert (y1 - y0, x1 - x0) == (min(side, uncertainty.shape[0]), min(side, uncertainty.shape[1]))


@given(planes(), st.integers(1, 12))
def test_square_by_square_everything_that_was_predicted_gets_settled(plane, side) -> None:
    uncertainty, settled = plane
    settled, seen = settled.copy(), []
    while (patch := least_certain_patch(uncertainty, settled, side=side)) is not None:
        assert patch.n_open > 0
        y0, x0, y1, x1 = patch.box
        settled[y0:y1, x0:x1] = True
        seen.append(patch)
    assert settled[np.isfinite(uncertainty)].all()
    means = [patch.uncertainty for patch in seen]
    assert means == sorted(means, reverse=True)  # the least certain first
    assert len({patch.box for patch in seen}) == len(seen)


def test_the_square_lies_where_the_doubt_is() -> None:
    uncertainty = np.full((512, 640), 0.1, np.float32)
    uncertainty[300:360, 500:560] = 0.9
    patch = least_certain_patch(uncertainty)
    y0, x0, y1, x1 = patch.box
    assert (y1 - y0, x1 - x0) == (160, 160)
    assert (y0 <= 300, x0 <= 500) == (y1 >= 360, x1 >= 560) == (True, True)
    settled = np.zeros(uncertainty.shape, bool)
    settled[300:360, 500:560] = True
    assert least_certain_patch(uncertainty, settled).box[:2] == (0, 0)


@pytest.mark.parametrize(
    ("shape", "side"),
    [((64, 64), 128), ((512, 512), 128), ((700, 500), 160), ((1024, 1024), 256), ((9000, 100), 256)],
)
def test_sides_suit_the_image(shape, side) -> None:
    assert patch_side(shape) == side


def test_what_cannot_be_is_refused_in_a_sentence() -> None:
    plane = np.zeros((4, 5), np.float32)
    with pytest.raises(ValueError, match="one slice at a time"):
        least_certain_patch(np.zeros((2, 4, 5)))
    with pytest.raises(ValueError, match="settled must have the shape"):
        least_certain_patch(plane, np.zeros((5, 4), bool))
    with pytest.raises(ValueError, match="side must be at least 1"):
        least_certain_patch(plane, side=0)
    with pytest.raises(ValueError, match="divide entropies"):
        least_certain_patch(plane + 3)
