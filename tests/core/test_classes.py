from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from skimage.color import deltaE_ciede2000, rgb2lab

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


def nearest(colors: list[tuple[int, int, int]], others: list[tuple[int, int, int]]) -> float:
    """Return the smallest CIEDE2000 distance of two sets of colours."""
    one, other = (rgb2lab(np.array(c, np.uint8)[None])[0] for c in (colors, others))
    return float(deltaE_ciede2000(one[:, None], other[None]).min())


@pytest.mark.parametrize("given", [(), VOC_CLASSES], ids=["none", "voc"])
def test_thirty_new_colours_are_far_from_all_in_use(given: tuple[ClassSpec, ...]) -> None:
    table = class_table([*given, *(f"class {i}" for i in range(30))])
    colors = [spec.color for spec in table]
    for place in range(max(len(given), 1), len(colors)):
        assert nearest([colors[place]], colors[:place]) > 13, place


@given(
    st.lists(st.tuples(*[st.integers(0, 255)] * 3), max_size=24, unique=True),
    st.integers(1, 12),
)
def test_new_colours_are_far_from_any_in_use(used: list[tuple[int, int, int]], n_new: int) -> None:
    # An eye tells 2 apart side by side; labels lie over an image, half transparent.
    specs = [ClassSpec(name=f"used {i}", color=color) for i, color in enumerate(used)]
    new = [spec.color for spec in class_table([*(f"new {i}" for i in range(n_new)), *specs])[:n_new]]
    for place, color in enumerate(new):
        others = [*used, *new[:place], *new[place + 1 :]]
        assert not others or nearest([color], others) > 10


def test_okabe_and_itos_colours_come_first_where_none_is_like_them() -> None:
    orange, sky_blue = (230, 159, 0), (86, 180, 233)
    assert [spec.color for spec in class_table(list("abc"))] == [(0, 0, 0), orange, sky_blue]
    close = ClassSpec(name="close to orange", color=(236, 150, 10))
    assert class_table([VOC_CLASSES[0], close, "new"])[2].color == sky_blue


def test_hundreds_of_classes_have_colours_too() -> None:
    table = class_table([f"class {i}" for i in range(700)])
    assert len({spec.color for spec in table}) > 400


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
    with pytest.raises(TypeError, match="brackets"):
        class_table("cell")  # or it would be four classes of a letter
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
