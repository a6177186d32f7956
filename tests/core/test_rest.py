"""What is none of the classes that experts speak for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from napari_crfasrnn.experts import REST
from napari_crfasrnn.training import rest
from napari_crfasrnn.training.growing import Pixels
from napari_crfasrnn.training.rest import are_strokes, rest_beside, strokes_beside, sureness

COLUMN = 2  # of the rest, after two new classes


@given(columns=st.lists(st.integers(0, COLUMN), min_size=1, max_size=60))
def test_strokes_of_the_rest_count_a_share_of_the_others_at_most(columns: list[int]) -> None:
    column = torch.tensor(columns)
    pixels = Pixels(torch.randn(len(columns), 3), column, torch.ones(len(columns)))
    weighed = strokes_beside(pixels, COLUMN)
    assert torch.equal(weighed.rows, pixels.rows)
    assert torch.equal(weighed.weight[column != COLUMN], pixels.weight[column != COLUMN])
    of_rest = weighed.weight[column == COLUMN]
    n_new = int((column != COLUMN).sum())
    assert float(of_rest.sum()) <= rest._MOST_REST * n_new + 1e-4
    if len(of_rest) <= rest._MOST_REST * n_new:
        assert (of_rest == 1).all()
    assert len(set(of_rest.tolist())) <= 1


@given(arrays(bool, st.tuples(st.integers(1, 300), st.integers(1, 300)), elements=st.just(False)), st.data())
def test_strokes_are_told_from_regions(mask: NDArray[np.bool_], data: st.DataObject) -> None:
    assert are_strokes([mask])  # nothing is labelled
    assert not are_strokes([np.ones_like(mask)])
    assert not are_strokes([mask, np.ones_like(mask)])  # a plane without labels says nothing
    y, x = (data.draw(st.integers(0, size - 1)) for size in mask.shape)
    height, width = mask.shape
    mask[y, x] = True
    assert are_strokes([mask]) == (
        0.25 * min(128, height - y // 128 * 128) * min(128, width - x // 128 * 128) > 1
    )


def test_what_the_world_shows_counts_a_share_of_what_is_labelled() -> None:
    untouched = Pixels(torch.randn(5, 3), torch.full((5,), COLUMN), 0.5 + torch.rand(5))
    for n_labelled, base in ((0.0, 200.0), (10.0, 200.0), (500.0, 500.0)):
        beside, world = rest_beside(n_labelled, COLUMN, untouched, torch.randn(7, 3), 3.0)
        assert world.weight.sum().item() == pytest.approx(3 * base)
        assert (world.column == COLUMN).all()
        most = rest._UNTOUCHED_WEIGHT * base
        assert most * rest._LEAST_UNTOUCHED <= beside.weight.sum().item() * (1 + 1e-5)
        assert beside.weight.sum().item() <= most * (1 + 1e-5)
        assert torch.equal(beside.weight.argsort(), untouched.weight.argsort())


def test_the_network_is_sure_or_not_of_classes_that_are_not_the_experts() -> None:
    known = torch.tensor([[9.0, -9.0, -9.0, 50.0], [1.0, 1.0, 1.0, -50.0]])
    sure = sureness(known, (3, REST))
    torch.testing.assert_close(sure, torch.tensor([1.0, 0.0]), atol=1e-4, rtol=0)
    assert torch.isfinite(known).all()  # as it was
