from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with reference vectors and real images beside the checkout; not everyone has it."""
    if not SHARED.is_dir():
        pytest.skip("the folder with shared reference data is not beside this checkout")
    return SHARED
