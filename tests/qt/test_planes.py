"""What is known of some planes of a stack looks like an array of all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_crfasrnn._qt.state.planes import KnownPlanes

SHAPES = [(4, 5), (3, 4, 5), (2, 3, 4, 5)]


def known(shape: tuple[int, ...], seed: int) -> tuple[KnownPlanes, np.ndarray]:
    """Return planes, and an array that was written to in the same way."""
    planes, array = KnownPlanes(shape, np.float32, np.nan), np.full(shape, np.nan, np.float32)
    random = np.random.default_rng(seed)
    for index in np.ndindex(shape[:-2]):
        if random.random() < 0.5:
            part = (slice(1, 3), slice(0, 4)) if random.random() < 0.5 else np.s_[:, :]
            values = random.random(array[index][part].shape, np.float32)
            planes.put(index, values, part)
            array[index][part] = values
        if random.random() < 0.2:
            planes.forget(index)
            array[index] = np.nan
    return planes, array


@given(st.sampled_from(SHAPES), st.integers(0, 50), st.data())
def test_it_is_indexed_as_an_array_is(shape, seed, data) -> None:
    planes, array = known(shape, seed)
    key = data.draw(hnp.basic_indices(shape, allow_newaxis=False))
    np.testing.assert_array_equal(planes[key], array[key])
    assert np.shape(planes[key]) == np.shape(array[key])
    np.testing.assert_array_equal(np.asarray(planes), array)
    assert (planes.shape, planes.ndim, planes.size, planes.dtype, len(planes)) == (
        array.shape, array.ndim, array.size, array.dtype, len(array),
    )  # fmt: skip
    chosen = np.array([1, 0])
    np.testing.assert_array_equal(planes[chosen], array[chosen])
    for index in np.ndindex(shape[:-2]):
        np.testing.assert_array_equal(planes.plane(index), array[index])


def test_only_known_planes_take_memory() -> None:
    planes = KnownPlanes((1_000_000, 4096, 4096), np.float32, np.nan)
    assert planes.is_empty
    planes.put((7,), np.ones((4096, 4096), np.float32))
    assert planes.knows((7,))
    assert not planes.knows((8,))
    assert planes[7, 0, 0] == 1
    assert np.isnan(planes[8, 5]).all()
    planes.forget((7,))
    assert planes.is_empty


def test_what_is_out_of_range_is_an_error() -> None:
    planes, _ = known((3, 4, 5), 0)
    with pytest.raises(IndexError):
        planes[3]
    with pytest.raises(ValueError, match="copy"):
        np.array(planes, copy=False)


def test_values_of_another_type() -> None:
    planes = KnownPlanes((2, 2, 3), np.uint8, 255)
    planes.put((), np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    planes.forget((1,))
    wide = planes.mapped(lambda plane: plane.astype(np.uint16) + 300, 65535)
    assert wide.dtype == np.uint16
    np.testing.assert_array_equal(wide[0], np.arange(300, 306).reshape(2, 3))
    assert (wide[1] == 65535).all()
