"""The state behind the widget, without a window: what is settled stays, and undo reaches everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_crfasrnn._qt.layers import ImageInput
from napari_crfasrnn._qt.state import engine
from napari_crfasrnn._qt.state.engine import Engine, ModelRequest
from napari_crfasrnn._qt.state.shelf import LEARNT, Shelf
from napari_crfasrnn._qt.state.standing import Standing
from napari_crfasrnn._qt.state.table import ClassTable
from napari_crfasrnn._qt.state.tasks import Busy, Tasks
from napari_crfasrnn._qt.state.work import Work
from napari_crfasrnn.classes import ClassSpec, class_table
from napari_crfasrnn.config import ModelConfig
from napari_crfasrnn.network import SegmentationModel
from napari_crfasrnn.segmenter import Segmentation

SHAPE = (3, 6, 7)
PLANE = (1,)
planes = hnp.arrays(np.uint8, SHAPE[1:], elements=st.integers(0, 3))
masks = hnp.arrays(bool, SHAPE[1:])


def new_work() -> Work:
    image = ImageInput("key", "photo", np.zeros(SHAPE), "ZYX", (1.0, 1.0, 1.0), SHAPE[:1], SHAPE[1:])
    return Work.blank(image, 4)


def take(work: Work, labels: np.ndarray, index=PLANE) -> None:
    """Do as a session does: merge, write to the layer, take."""
    entropy = np.full(labels.shape, 0.5, np.float32)
    segmented = Segmentation(labels, class_table(list("abcd")), before_crf=3 - labels, entropy=entropy)
    revision = work.merge(segmented, index)
    work.labels[index] = revision.after.labels
    work.take(revision, segmented)


@given(planes, planes, masks, masks)
def test_segmenting_again_keeps_what_was_settled(first, second, painted, verified) -> None:
    work = new_work()
    take(work, first)
    work.labels[PLANE][painted] = 3
    work.verified[PLANE] = verified
    before = work.labels.copy()
    edited = work.labels[PLANE] != first
    take(work, second)
    settled = edited | verified
    np.testing.assert_array_equal(work.labels[PLANE][settled], before[PLANE][settled])
    np.testing.assert_array_equal(work.labels[PLANE][~settled], second[~settled])
    np.testing.assert_array_equal(work.baseline[PLANE], second)
    np.testing.assert_array_equal(work.verified[PLANE], settled)
    assert (work.labels[[0, 2]] == 255).all()
    assert np.isnan(work.entropy[0]).all()
    assert (work.entropy[1] == 0.5).all()


@given(st.lists(planes, min_size=2, max_size=4))
def test_baselines_follow_the_undo_and_redo_of_predictions(predictions) -> None:
    work = new_work()
    states = [(work.labels.copy(), work.baseline.copy(), work.verified.copy())]
    for prediction in predictions:
        take(work, prediction)
        states.append((work.labels.copy(), work.baseline.copy(), work.verified.copy()))
    order = [*range(len(states) - 2, -1, -1), *range(1, len(states))]
    distinct = all(not np.array_equal(a[0], b[0]) for i, a in enumerate(states) for b in states[:i])
    if not distinct:
        return  # an undo between equal labels cannot be told from none
    for place in order:
        labels, baseline, verified = states[place]
        work.labels[...] = labels  # what the undo of the layer does
        work.follow_undo()
        np.testing.assert_array_equal(work.baseline, baseline)
        np.testing.assert_array_equal(work.verified, verified)


def test_strokes_hold_and_what_refine_gave_does_not() -> None:
    work = new_work()
    take(work, np.zeros(SHAPE[1:], np.uint8))
    work.labels[1, 0, 0] = 1  # a stroke
    where = np.zeros((2, 2), bool)
    where[0, 1] = True
    work.labels[1, 2, 2] = 1
    work.take_refined(PLANE, (2, 1), where, "refined")
    assert not work.held(PLANE)[2, 2]
    work.labels[1, 3, 3] = 255  # erased to unlabelled
    work.verified[1, 5, 5] = True
    held = work.held(PLANE)
    assert held[0, 0]
    assert held[5, 5]
    assert held.sum() == 2
    work.labels[1, 2, 2] = 2  # painted over what Refine gave
    assert work.held(PLANE)[2, 2]
    work.labels[1, 2, 2] = 0  # undone, stroke and refinement
    work.follow_steps({"refined": True}.get)
    assert not work.held(PLANE)[2, 2]
    assert work.baseline[1, 2, 2] == 0


@given(planes, masks, masks, st.integers(0, 3))
def test_what_is_painted_is_edited_whatever_it_was(predicted, first, second, value) -> None:
    work = new_work()
    take(work, predicted)
    part = (slice(1, 2), slice(0, SHAPE[1]), slice(0, SHAPE[2]))
    states, covered = [], np.zeros(SHAPE[1:], bool)
    for step, mask in enumerate((first, second)):
        before = work.baseline.copy()
        work.labels[PLANE][mask] = value
        work.claim(part, mask[None], value)
        covered |= mask
        np.testing.assert_array_equal(work.held(PLANE), covered)
        if work.has_claims:
            work.keep_claims(step)
        states.append((step, before, work.baseline.copy()))
    assert work.claim(part, ~covered[None], 255) is None  # nothing there is unlabelled
    for step, before, _ in reversed(states):
        work.follow_steps({step: True}.get)
        np.testing.assert_array_equal(work.baseline, before)
    for step, _, after in states:
        work.follow_steps({step: False}.get)
        np.testing.assert_array_equal(work.baseline, after)
    take(work, (predicted + 1) % 4)
    assert (work.labels[PLANE][covered] == value).all()
    np.testing.assert_array_equal(work.verified[PLANE], covered)


def test_confirmed_pixels_made_unlabelled_stay_so() -> None:
    work = new_work()
    take(work, np.ones(SHAPE[1:], np.uint8))
    part, mask = (slice(1, 2), slice(2, 3), slice(3, 4)), np.ones((1, 1, 1), bool)
    work.claim(part, mask, 1)
    work.keep_claims("confirmed")
    work.labels[part] = 255
    work.claim(part, mask, 255)
    work.keep_claims("unlabelled")
    assert work.erased(PLANE).sum() == 1
    assert not work.held(PLANE).any()
    take(work, np.zeros(SHAPE[1:], np.uint8))
    assert work.labels[1, 2, 3] == 255
    work = new_work()  # where nothing was predicted, there is nothing to keep out
    assert work.claim(part, mask, 255) is None


def test_claims_of_a_stroke_that_is_given_up_are_gone() -> None:
    work = new_work()
    take(work, np.ones(SHAPE[1:], np.uint8))
    before = work.baseline.copy()
    work.claim((slice(1, 2), slice(0, 2), slice(0, 2)), np.ones((1, 2, 2), bool), 1)
    assert work.held(PLANE).sum() == 4
    work.drop_claims()
    np.testing.assert_array_equal(work.baseline, before)


def test_accepting_is_taken_back_whole() -> None:
    work = new_work()
    take(work, np.zeros(SHAPE[1:], np.uint8))
    work.verified[1, 0, 0] = True
    before = work.verified.copy()
    planes = list(np.ndindex(*SHAPE[:1]))
    work.accept(planes, "first")
    assert work.verified.sum() == 42  # the plane that has labels
    work.accept(planes, "second")
    np.testing.assert_array_equal(work.verified, before)
    assert not work.accepted

    # Undo and redo go through both.
    undone = {"first": False, "second": True}
    work.follow_steps(undone.get)
    assert work.verified.sum() == 42
    assert work.is_accepted(planes)
    undone["first"] = True
    work.follow_steps(undone.get)
    np.testing.assert_array_equal(work.verified, before)
    assert not work.accepted
    undone.update(first=False, second=False)
    work.follow_steps(undone.get)
    np.testing.assert_array_equal(work.verified, before)
    assert not work.accepted


def test_slices_are_accepted_one_by_one_or_all_at_once() -> None:
    work = new_work()
    work.labels[:] = 2
    work.verified[0, 0, 0] = True
    work.accept([(1,)], "one")
    assert work.verified[1].all()
    assert work.verified.sum() == 1 + work.verified[1].size
    planes = list(np.ndindex(*SHAPE[:1]))
    assert not work.is_accepted(planes)
    work.accept(planes, "all")  # the one that is accepted stays so
    assert work.verified.all()
    work.accept([(1,)], "not this one")
    assert not work.verified[1].any()
    assert not work.is_accepted(planes)
    work.accept(planes, "all again")
    work.accept(planes, "none")
    assert work.verified.sum() == 1
    undone = dict.fromkeys(("all again", "none"), True) | dict.fromkeys(("one", "all", "not this one"), False)
    work.follow_steps(undone.get)
    assert work.verified[0].all()
    assert not work.verified[1].any()


def test_work_comes_back_as_a_project_stored_it() -> None:
    work = new_work()
    labels = np.full(SHAPE, 65535, np.uint16)
    labels[0] = 3
    again = Work.restored(work.image, labels, None, np.ones(SHAPE, bool), 4)
    assert again.labels.dtype == np.uint8
    assert (again.labels[0] == 3).all()
    assert (again.labels[1:] == 255).all()
    assert (again.baseline == 255).all()
    assert again.labels.flags.writeable


def test_a_short_table_has_a_key_for_each_class_and_a_long_one_for_those_present() -> None:
    table = ClassTable()
    table.replace(["background", "a", "b"], [None] * 3, None)
    assert table.keys == {1: 1, 2: 2}
    table.clear()
    table.replace([f"class {i}" for i in range(21)], [None] * 21, None)
    assert table.keys == {}
    table.give_keys([15, 5, 0])
    assert table.keys == {1: 15, 2: 5}
    table.give_keys([7, 15])  # keys stay where they are
    assert table.keys == {1: 15, 2: 5, 3: 7}
    table.replace([f"class {i}" for i in range(21) if i != 5], [None] * 20, [*range(5), None, *range(5, 20)])
    assert table.keys == {1: 14, 3: 6}


def test_a_renamed_class_goes_on_from_its_old_name() -> None:
    table = ClassTable()
    table.follow(["background", "person"])
    table.replace(["background", ClassSpec(name="human", color=(1, 2, 3))], table.origins, None)
    assert table.continues() == (("human", "person"),)
    table.locked = True
    table.follow(["background", "cat"])
    assert table.names == ("background", "human")
    assert table.origins == ("background", None)
    assert table.continues() == ()


def test_what_a_table_adds_is_not_known_to_the_model_that_learns() -> None:
    model = SegmentationModel(ModelConfig(classes=class_table(["soil", "cat", "dog"])))
    grown = ModelRequest(model, class_table(["soil", "cat", "dog", "crop"]))
    assert engine._with_names_of(grown) is model
    # "cat" is called "dog" now, and the model's own "dog" is not in the table any more.
    renamed = ModelRequest(model, class_table(["soil", "dog", "crop"]), (("dog", "cat"),))
    taught = engine._with_names_of(renamed)
    assert [spec.name for spec in taught.classes] == ["soil", "dog"]


def test_a_table_needs_a_class_and_names_that_differ() -> None:
    table = ClassTable()
    with pytest.raises(ValueError, match="at least one"):
        table.replace([], [], None)
    with pytest.raises(ValueError, match="twice"):
        table.replace(["a", "a"], [None, None], None)
    assert table.classes == ()


def test_models_that_cannot_be_listed_end_the_wait_for_them(qtbot, monkeypatch) -> None:
    tasks, engine = Tasks(), Engine()

    def list_models() -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(engine, "list_models", list_models)
    shelf = Shelf(tasks, engine)
    shelf.load()
    assert shelf.loading
    begun = []
    shelf.when_loaded(Busy("segment", "Looking for models…"), lambda: begun.append(True))
    assert tasks.busy is not None
    qtbot.waitUntil(lambda: not shelf.loading)
    assert tasks.busy is None
    assert not begun
    assert tasks.lines["start"].tone == "problem"
    tasks.close()


def test_planes_know_which_model_segmented_them() -> None:
    standing = Standing()
    assert standing.model_of("key", PLANE) is None
    standing.segmented("key", (), "starter")  # all planes
    standing.segmented("key", PLANE, LEARNT)
    assert [standing.model_of("key", (i,)) for i in range(3)] == ["starter", LEARNT, "starter"]
    standing.rename(LEARNT, "round:1")
    assert standing.model_of("key", PLANE) == "round:1"
    standing.segmented("key", (), "em-tissue")
    assert standing.model_of("key", PLANE) == "em-tissue"
    assert standing.model_of("other", PLANE) is None


@given(planes, planes, masks, masks)
def test_what_was_learnt_is_counted_and_what_changed_since_is_not(first, later, painted, more) -> None:
    work, standing = new_work(), Standing()
    take(work, first)
    work.labels[PLANE][painted] = later[painted]
    lesson = work.known()
    standing.taught(LEARNT, {"key": lesson})
    assert standing.n_learnt(LEARNT, "key", work.known()) == work.summary().n_labelled
    work.labels[PLANE][more] = 3 - later[more]
    known = work.known()
    same = (known == lesson) & (known != 255)
    assert standing.n_learnt(LEARNT, "key", known) == np.count_nonzero(same)
    assert np.count_nonzero(known != 255) == work.summary().n_labelled

    standing.rename(LEARNT, "round:1")
    assert standing.n_learnt("round:1", "key", known) == np.count_nonzero(same)
    for model in (LEARNT, "starter"):
        assert standing.n_learnt(model, "key", known) == 0
    assert standing.n_learnt("round:1", "other", known) == 0
    standing.taught(LEARNT, {"key": known})
    standing.rename(LEARNT, "")  # discarded
    assert standing.n_learnt(LEARNT, "key", known) == 0
    # The classes change places, and one of them goes: what is left of it was learnt as before.
    standing.remap_lessons([1, 0, None, 2], 3)
    moved = work.remapped([1, 0, None, 2], 3).known()
    kept = np.count_nonzero(same & (lesson != 2))
    assert standing.n_learnt("round:1", "key", moved) == kept
    standing.clear()
    assert standing.n_learnt("round:1", "key", moved) == 0


def test_lessons_of_a_few_models_are_remembered() -> None:
    standing, labels = Standing(), np.zeros((2, 2), np.uint8)
    for number in range(5):
        standing.taught(LEARNT, {"key": labels})
        standing.rename(LEARNT, f"round:{number}")
    counts = [standing.n_learnt(f"round:{number}", "key", labels) for number in range(5)]
    assert counts == [0, 0, 4, 4, 4]


def test_changes_of_the_class_table_say_what_becomes_of_each_class() -> None:
    table = ClassTable()
    table.replace(("background", "cell", "debris"), ("background", "cell", None), None)
    assert table.own_names == ("debris",)
    assert table.added("x").new_values is None
    assert table.renamed(1, "nucleus").mapping == {"cell": "nucleus"}
    without = table.without(1)
    assert (without.mapping, without.new_values) == ({"cell": None}, (0, None, 1))
    begun = table.begun(["debris", " x "])
    assert (begun.origins, begun.new_values) == (("background", None, None), (0, None, 1))
    assert begun.mapping == {"cell": None}
    change, kept = table.adopting(class_table(["background", "nucleus"]), {0, 2})
    assert [spec.name for spec in kept] == ["debris"]
    assert (change.origins, change.new_values) == (("background", "nucleus", None), (0, None, 2))
