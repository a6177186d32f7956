"""Classes that are new beside those that a model knows, while somebody paints."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from napari_crfasrnn import Segmenter, load_model
from napari_crfasrnn.classes import class_table
from napari_crfasrnn.config import ModelConfig
from napari_crfasrnn.edits import box_about
from napari_crfasrnn.experts import REST, Panel
from napari_crfasrnn.imaging import open_image
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.plane_logits import PlaneLogits
from napari_crfasrnn.progress import Cancelled
from napari_crfasrnn.training import LiveBeside
from napari_crfasrnn.training.live_beside import _Joined

NOTHING = 255
SIDE = 128
NEW = 21
Labels = NDArray[np.uint8]


@cache
def model() -> SegmentationModel:
    starter = load_model("starter")
    return starter.with_classes([*starter.classes, "disc"])


@cache
def scene(height: int = SIDE, width: int = SIDE) -> tuple[NDArray[np.uint8], Labels]:
    """Bright discs in noise, and where they are; to the starter it is all background, or nearly."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    truth = np.zeros((height, width), np.uint8)
    for row, column in ((28, 30), (90, 40), (60, 100)):
        truth[(y - row) ** 2 + (x - column) ** 2 < 16**2] = NEW
    grey = np.where(truth == NEW, 190.0, 60.0) + random.normal(0, 12, truth.shape)
    return grey.clip(0, 255).astype(np.uint8), truth


def made(image: NDArray[np.uint8], **how: object) -> tuple[LiveBeside, Segmenter]:
    segmenter = Segmenter(model())
    segmenter.set_image(image)
    live = LiveBeside(model(), open_image(image).plane(()), segmenter.live(), [NEW], **how)  # type: ignore[arg-type]
    return live, segmenter


def nothing(shape: tuple[int, int] = (SIDE, SIDE)) -> Labels:
    return np.full(shape, NOTHING, np.uint8)


def with_stroke(strokes: Labels, value: int, place: tuple[slice, slice]) -> Labels:
    strokes = strokes.copy()
    strokes[place] = value
    return strokes


DISC, FIELD = np.s_[26:30, 20:40], np.s_[4:8, 50:110]
WHOLE = (0, 0, SIDE, SIDE)


def overlap(labels: Labels, truth: Labels) -> float:
    found, wanted = labels == NEW, truth == NEW
    return float((found & wanted).sum() / (found | wanted).sum())


def test_a_stroke_of_a_new_class_finds_it_elsewhere() -> None:
    image, truth = scene()
    live, segmenter = made(image)
    shown = segmenter.predict().labels.copy()
    one = with_stroke(nothing(), NEW, DISC)
    plain = segmenter.live().exact(WHOLE, one, nothing())
    first = live.exact(WHOLE, one, nothing())
    assert first.box == live.exact_window((0, 0, 9, 9)) == WHOLE
    shown[first.changed] = first.labels[first.changed]
    np.testing.assert_array_equal(shown, first.labels)  # what did not change is as it was
    both = with_stroke(one, 0, FIELD)
    second = live.exact(WHOLE, both, one)
    shown[second.changed] = second.labels[second.changed]
    np.testing.assert_array_equal(shown, second.labels)
    assert overlap(second.labels, truth) > 0.8
    assert overlap(plain.labels, truth) < 0.5 * overlap(second.labels, truth)
    assert (second.labels[both != NOTHING] == both[both != NOTHING]).all()
    assert second.logits.shape == (NEW + 1, SIDE, SIDE)
    assert live.lesson is not None
    assert set(live.lesson.labels) == {0, NEW}


def test_without_a_new_class_it_is_a_refinement_to_the_bit() -> None:
    image, _ = scene()
    live, segmenter = made(image)
    plain = segmenter.live()
    strokes = with_stroke(nothing(), 15, DISC)
    box = (24, 18, 32, 42)
    one, other = (each.exact(box, strokes, nothing()) for each in (live, plain))
    assert one.box == other.box
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.changed, other.changed)
    assert torch.equal(one.logits, other.logits)
    window = live.preview_window(box)
    assert window == plain.preview_window(box)
    cut = strokes[window[0] : window[2], window[1] : window[3]]
    previews = [each.preview(box, cut, np.full_like(cut, NOTHING)) for each in (live, plain)]
    np.testing.assert_array_equal(previews[0].labels, previews[1].labels)
    assert live.lesson is None


def test_without_its_strokes_the_new_class_goes() -> None:
    image, _ = scene()
    live, segmenter = made(image)
    before = segmenter.predict().labels
    strokes = with_stroke(with_stroke(nothing(), NEW, DISC), 0, FIELD)
    shown = live.exact(WHOLE, strokes, nothing()).labels.copy()
    assert (shown == NEW).sum() > 500
    back = live.exact(WHOLE, nothing(), strokes)
    shown[back.changed] = back.labels[back.changed]
    np.testing.assert_array_equal(shown, before)


def test_what_was_painted_is_answered_before_the_next_stroke() -> None:
    """Somebody comes back to an image: the first stroke there is told from those that were there."""
    image, _ = scene()
    strokes = with_stroke(with_stroke(nothing(), NEW, DISC), 0, FIELD)
    ready, _ = made(image)
    ready.prepare(strokes)
    more = with_stroke(strokes, NEW, np.s_[58:62, 90:110])
    fresh, _ = made(image)
    known, anew = (each.exact(WHOLE, more, strokes) for each in (ready, fresh))
    np.testing.assert_array_equal(known.labels, anew.labels)
    np.testing.assert_array_equal(known.changed, anew.changed)
    assert known.changed.mean() < 0.2


def test_what_was_painted_elsewhere_counts() -> None:
    image, truth = scene()
    live, _ = made(image)
    strokes = with_stroke(with_stroke(nothing(), NEW, DISC), 0, FIELD)
    live.exact(WHOLE, strokes, nothing())
    assert live.lesson is not None
    one = with_stroke(nothing(), NEW, np.s_[58:60, 98:102])
    alone, taught = made(image)[0], made(image, elsewhere=[live.lesson])[0]
    found = [overlap(each.exact(WHOLE, one, nothing()).labels, truth) for each in (alone, taught)]
    assert found[1] > found[0]
    # Where none is painted, none is looked for.
    known = with_stroke(nothing(), 0, FIELD)
    assert not (made(image, elsewhere=[live.lesson])[0].exact(WHOLE, known, nothing()).labels == NEW).any()


def test_of_a_large_plane_what_is_around_the_stroke_is_labelled() -> None:
    shape = (1300, 1400)
    image, truth = scene(*shape)
    stroke = (26, 20, 30, 40)
    box = box_about(stroke, shape, NEW + 1)
    live, segmenter = made(image, box=box)
    assert live.is_part
    assert not live.is_whole
    window = live.exact_window(stroke)
    assert window[2] > box[2]  # the CRF sees a little more
    one = with_stroke(nothing(shape), NEW, DISC)
    both = with_stroke(one, 0, FIELD)
    seen = np.s_[window[0] : window[2], window[1] : window[3]]
    refined = live.exact(stroke, both[seen], nothing(shape)[seen])
    assert refined.box == box
    assert refined.labels.shape == (box[2] - box[0], box[3] - box[1])
    inside = np.s_[box[0] : box[2], box[1] : box[3]]
    assert overlap(refined.labels, truth[inside]) > 0.7
    shown = segmenter.predict().labels[inside].copy()
    shown[refined.changed] = refined.labels[refined.changed]
    assert (shown != refined.labels).mean() < 0.005  # parts lie otherwise than those of `predict`
    assert live.covers(stroke)
    assert not live.covers((1200, 1300, 1210, 1310))


@given(data=st.data(), n_new=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_parts_of_joined_logits_are_parts_of_the_whole(data: st.DataObject, n_new: int) -> None:
    height, width, n_labels = 9, 12, 5
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    known = PlaneLogits(torch.randn(1, n_labels, height, width, generator=random), (height, width))

    def box() -> tuple[int, int, int, int]:
        y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        return y0, x0, data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width))

    panel = _untaught(n_labels, n_new)
    place = box()
    judged = torch.randn(1, n_new + 1, place[2] - place[0], place[3] - place[1], generator=random)
    joined = _Joined(known, panel, judged, place)
    whole = joined.within((0, 0, height, width))
    asked = box()
    y0, x0, y1, x1 = asked
    torch.testing.assert_close(joined.within(asked), whole[..., y0:y1, x0:x1])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    torch.testing.assert_close(joined.at(y.ravel(), x.ravel()), whole[0].flatten(1))
    y0, x0, y1, x1 = place
    wanted = panel.joined(judged, known.within(place))
    torch.testing.assert_close(whole[..., y0:y1, x0:x1], wanted)
    outside = torch.ones(height, width, dtype=torch.bool)
    outside[y0:y1, x0:x1] = False
    torch.testing.assert_close(whole[0][:, outside], known.within((0, 0, height, width))[0][:, outside])


def _untaught(n_labels: int, n_new: int) -> Panel:
    return Panel.of([], [], n_labels, (*range(n_labels - n_new, n_labels), REST))


def test_a_cancel_leaves_it_as_it_was() -> None:
    image, _ = scene()
    live, _ = made(image)
    strokes = with_stroke(nothing(), NEW, DISC)
    asked: list[int] = []

    def cancel() -> bool:
        asked.append(1)
        return len(asked) > 30

    with pytest.raises(Cancelled):
        live.exact(WHOLE, strokes, nothing(), cancel=cancel)
    fresh, _ = made(image)
    one, other = (each.exact(WHOLE, strokes, nothing()) for each in (live, fresh))
    np.testing.assert_array_equal(one.labels, other.labels)


def test_errors_name_what_is_wrong() -> None:
    image, _ = scene()
    live, segmenter = made(image)
    for wrong in (nothing((3, 3)), nothing().astype(np.int64), with_stroke(nothing(), NEW + 1, DISC)):
        with pytest.raises(ValueError, match="strokes must be"):
            live.exact(WHOLE, wrong, nothing())
    other = SegmentationModel(
        ModelConfig(architecture="fcn-8s", width=1 / 32, classes=class_table(["a", "b"]))
    )
    assert not LiveBeside.takes(other)
    with pytest.raises(ValueError, match="model must be an FcnLite or FcnFine"):
        LiveBeside(other, open_image(image).plane(()), segmenter.live(), [1])
