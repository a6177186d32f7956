from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from napari_crfasrnn.classes import VOC_CLASSES, ClassSpec, class_table, ignore_value, label_dtype, voc_color


def test_voc_palette_is_the_published_one() -> None:
    # Values from the palette of the PASCAL VOC development kit.
    assert [voc_color(v) for v in (0, 1, 2, 8, 15, 20, 255)] == [
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (64, 0, 0), (192, 128, 128), (0, 64, 128), (224, 224, 192),
    ]  # fmt: skip
    assert len(VOC_CLASSES) == 21
    assert VOC_CLASSES[15].name == "person"


@given(st.lists(st.text(min_size=1).filter(str.strip).map(str.strip), min_size=1, max_size=40, unique=True))
def test_table_keeps_names_and_order_and_gives_distinct_colours(names: list[str]) -> None:
    table = class_table(names)
    assert [spec.name for spec in table] == names
    assert len({spec.color for spec in table}) == len(names)


def test_given_colours_are_kept_and_not_given_twice() -> None:
    table = class_table(["soil", ClassSpec(name="crop", color=(230, 159, 0)), "weed"])
    assert table[1].color == (230, 159, 0)
    assert len({spec.color for spec in table}) == 3


def test_voc_names_get_voc_colours() -> None:
    assert class_table(["background", "person"])[1].color == (192, 128, 128)


@pytest.mark.parametrize(
    ("classes", "match"),
    [([], "at least one class"), (["a", "b", "a"], "'a' twice"), (["a", " "], "blank")],
)
def test_bad_tables(classes: list[str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        class_table(classes)


def test_bad_entries() -> None:
    with pytest.raises(TypeError, match="got int"):
        class_table([3])  # type: ignore[list-item]
    with pytest.raises(ValidationError, match="0 to 255"):
        ClassSpec(name="a", color=(0, 0, 256))


@pytest.mark.parametrize(
    ("n", "dtype", "ignore"), [(2, np.uint8, 255), (255, np.uint8, 255), (256, np.uint16, 65535)]
)
def test_label_types_leave_room_for_ignore(n: int, dtype: type, ignore: int) -> None:
    assert label_dtype(n) is dtype
    assert ignore_value(dtype) == ignore
    assert n - 1 < ignore
