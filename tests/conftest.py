from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The suite asks the same questions every time, so that a failure belongs to the change that made it.
# HYPOTHESIS_PROFILE=explore asks new ones every time.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# Other tests import these, too: what they assert shall be explained there as well.
pytest.register_assert_rewrite("foreign_files", "test_lattice", "window_user")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with reference vectors and real images beside the checkout; not everyone has it."""
    if not SHARED.is_dir():
        pytest.skip("the folder with shared reference data is not beside this checkout")
    return SHARED


@pytest.fixture(scope="module", autouse=True)
def _memory_goes_back() -> Iterator[None]:
    # The lattice keeps memory for the next image: two processes with all tests would need gigabytes.
    yield
    if (compiled := sys.modules.get("napari_crfasrnn._ext._lattice")) is not None:
        compiled.release_memory()


@pytest.fixture
def small_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds with small forests: most of the time of a short round is trees."""
    from napari_crfasrnn.training import panel_learner

    monkeypatch.setattr(panel_learner, "_TREES", 6)
