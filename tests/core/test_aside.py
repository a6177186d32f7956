"""Work in a thread of its own."""

from __future__ import annotations

import time

import pytest
import torch

from napari_crfasrnn.progress import Cancel, Cancelled, raise_if_cancelled
from napari_crfasrnn.training.aside import Aside


def until_stopped(stop: Cancel) -> int:
    """Work on and on."""
    while True:
        raise_if_cancelled(stop)
        time.sleep(0.005)


class TestAside:
    def test_work_goes_on_beside_the_caller_with_the_cores_shared(self) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        try:
            with Aside(lambda stop: (torch.get_num_threads(), torch.is_grad_enabled())) as aside:
                assert torch.get_num_threads() == 2
                assert aside.wait(None) == (1, False)
            assert torch.get_num_threads() == 3
        finally:
            torch.set_num_threads(before)

    def test_the_end_of_the_block_stops_it(self) -> None:
        begun = time.monotonic()
        with Aside(until_stopped):
            pass
        assert time.monotonic() - begun < 5

    def test_a_wait_can_be_cancelled(self) -> None:
        with pytest.raises(Cancelled), Aside(until_stopped) as aside:
            aside.wait(lambda: True)

    def test_what_it_fails_with_reaches_the_caller_who_did_not_wait(self) -> None:
        def fail(stop: Cancel) -> None:
            raise ValueError("no such place")

        threads = torch.get_num_threads()
        with pytest.raises(ValueError, match="no such place"), Aside(fail):
            pass
        assert torch.get_num_threads() == threads
