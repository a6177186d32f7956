"""Whatever goes wrong is told in one sentence; nothing is lost, nothing crashes."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtTest import QTest

from napari_crfasrnn._qt.state.tasks import Busy
from napari_crfasrnn._qt.state.telling import CHANGED
from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.project import Project


def test_images_that_are_hardly_images(user) -> None:
    """NaN, infinity, constant, one pixel, one row: each is segmented or refused with a reason."""
    grey = np.random.default_rng(0).random((40, 50)).astype(np.float32)
    grey[3, 4], grey[5, 6] = np.nan, np.inf
    for image in (grey, np.full((30, 40), 7, np.uint16), np.zeros((1, 1), np.uint8), np.zeros((1, 37))):
        layer = user.viewer.add_image(image, name="odd", contrast_limits=(0, 1))
        assert user.do(user.widget.segment) == "segment", user.line("start")
        assert user.labels.shape == image.shape
        if image is grey:
            assert "2 NaN" in user.line("start")
        user.viewer.layers.remove(layer)
        QTest.qWait(20)
        assert len(user.viewer.layers) == 0

    user.viewer.add_image(np.full((20, 20), np.nan), contrast_limits=(0, 1))
    assert user.do(user.widget.segment) == "failed"
    assert "finite" in user.line("start")
    assert len(user.viewer.layers) == 1


def test_an_image_of_complex_numbers_and_one_of_too_many_axes(user) -> None:
    user.viewer.add_image(np.zeros((2, 3, 4, 16, 16), np.uint8), name="five")
    assert user.do(user.widget.segment) == "failed"
    assert "five" in user.line("start")


def test_a_broken_checkpoint(user, tmp_path) -> None:
    import napari_crfasrnn

    starter = Path(napari_crfasrnn.__file__).parent / "data" / "starter.safetensors"
    chosen = user.session.shelf.choice
    (tmp_path / "cut.safetensors").write_bytes(starter.read_bytes()[:100_000])
    (tmp_path / "text.safetensors").write_text("not a model")
    for name in ("cut", "text", "missing"):
        assert (
            user.do(lambda name=name: user.session.shelf.open(tmp_path / f"{name}.safetensors")) == "failed"
        )
        assert name in user.line("start")
        assert "Traceback" not in user.line("start")
        assert user.session.shelf.choice is chosen


def test_a_class_table_without_classes_or_with_a_name_twice(user) -> None:
    user.session.classes.add("cell")
    names = user.session.table.names
    user.widget._add("cell")
    assert "cell" in user.line("classes")
    user.widget._delete(0)
    assert "background" in user.line("classes")
    assert user.session.table.names == names
    for _ in range(len(names) - 1):
        user.session.classes.delete(1)
    assert user.session.table.names == names[:1]


def test_painting_while_segmenting_is_kept(user, photograph) -> None:
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"

    def paint_meanwhile() -> None:
        user.widget.segment()
        user.bench.paint_with(3)
        user.drag((30, 30), (60, 60))

    assert user.do(paint_meanwhile) == "segment"
    user.wait(lambda: user.session.busy is None)
    assert (user.labels == 3).sum() > 100
    assert user.session.busy is None


@pytest.mark.parametrize("is_first", [True, False])
def test_classes_may_change_while_segmenting(user, photograph, is_first, monkeypatch) -> None:
    user.viewer.add_image(photograph, name="photo")
    user.settle()
    if not is_first:
        user.do(user.widget.segment)
    person = user.session.table.names.index("person")
    user.bench.paint_with(person)
    user.drag((30, 30), (60, 60))
    user.settle()
    painted = user.bench.work.held(())
    assert painted.sum() > 100
    changed, segment = threading.Event(), user.session.engine.segment

    def segment_slowly(*arguments: Any) -> Any:
        result = segment(*arguments)
        assert changed.wait(60)
        return result

    monkeypatch.setattr(user.session.engine, "segment", segment_slowly)

    def change_meanwhile() -> None:
        user.widget.segment()
        user.session.classes.rename(person, "human")
        user.session.classes.add("flag")
        user.bench.paint_with(21)
        user.drag((100, 30), (100, 60))
        user.session.classes.delete(1)
        changed.set()

    assert user.do(change_meanwhile) == "segment"
    user.settle()
    names, work = user.session.table.names, user.bench.work
    assert len(names) == 21
    assert names[person - 1] == "human"
    assert names[20] == "flag"
    np.testing.assert_array_equal(user.labels[painted], person - 1)
    assert work.held(())[painted].all()
    assert ((user.labels == 20) & work.held(())).sum() > 50
    guessed = user.labels[~work.held(())]
    assert (guessed == person - 1).any()  # the photograph shows one
    for predicted in (guessed, work.baseline):  # 255: what was seen as the class that went
        assert set(np.unique(predicted)) <= {*range(20), 255}
    user.bench.undo()
    user.settle()
    np.testing.assert_array_equal(user.labels[painted], person - 1)


def test_a_refinement_is_not_taken_where_classes_went_meanwhile(user, photograph) -> None:
    user.viewer.add_image(photograph, name="photo")
    user.do(user.widget.segment)
    user.bench.paint_with(3)
    user.drag((30, 30), (60, 60))
    user.settle()

    def delete_meanwhile() -> None:
        user.click(user.widget.correct.refine_all)
        user.session.classes.delete(1)

    user.do(delete_meanwhile)
    user.settle()
    assert user.line("correct") == CHANGED
    labels = user.labels.copy()
    assert (labels == 2).sum() > 100  # what was painted
    user.do(lambda: user.click(user.widget.correct.refine_all))
    assert "Refined" in user.line("correct")


def test_removing_layers_while_segmenting(user, photograph) -> None:
    image = user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    key = user.bench.key

    user.widget.segment()
    user.viewer.layers.remove("photo · labels")
    QTest.qWait(20)
    assert "labels are kept" in user.line("classes")
    user.wait(lambda: user.session.busy is None)
    user.bench.bring_back()
    assert (user.labels == 15).any()

    ended = len(user.ended)
    user.widget.segment()
    user.viewer.layers.remove(image)
    user.wait(lambda: len(user.ended) > ended)
    QTest.qWait(50)
    assert user.ended[-1] == "segment"
    assert len(user.viewer.layers) == 0
    assert user.bench.image is None
    user.settle()
    stored = user.session.storage.keeper.project.items[0]
    np.testing.assert_array_equal(stored.labels(), user.session.works[key].labels)
    assert (stored.labels() == 15).any()


def test_cancel_leaves_everything_as_it_was(user, photograph) -> None:
    user.viewer.add_image(photograph, name="photo")
    user.widget.segment()
    user.widget.cancel()
    assert user.ended[-1] == "cancelled"
    assert len(user.viewer.layers) == 1
    assert user.do(user.widget.segment) == "segment"

    user.bench.paint_with(3)
    user.drag((30, 30), (60, 60))
    user.settle()
    labels, baseline = user.labels.copy(), user.bench.work.baseline.copy()
    choice, layers = user.session.shelf.choice, list(user.viewer.layers)
    user.widget.segment()
    QTest.qWait(60)
    user.widget.cancel()
    user.widget.learn(TrainConfig(seconds=None, max_iterations=30, crf_iterations=0))
    user.wait(lambda: len(user.session.lessons.history) > 3)
    user.click(user.widget.learning.task.cancel)
    user.widget.cancel()  # once more: what was learnt so far is dropped, too
    assert user.ended[-2:] == ["cancelled", "cancelled"]
    assert "as it was" in user.line("learn")
    QTest.qWait(200)
    assert user.session.lessons.report is None
    assert user.session.shelf.choice is choice
    assert list(user.viewer.layers) == layers
    np.testing.assert_array_equal(user.labels, labels)
    np.testing.assert_array_equal(user.bench.work.baseline, baseline)
    assert user.do(user.widget.segment) == "segment"  # and it goes on


def test_a_full_disk_is_told_and_the_layers_are_untouched(user, photograph, monkeypatch) -> None:
    from napari_crfasrnn.project import files

    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    user.bench.paint_with(3)
    user.drag((30, 30), (60, 60))

    with monkeypatch.context() as broken:
        broken.setattr(files.os, "fsync", full)  # the last step of writing a file
        user.session.storage.save()
        user.wait(lambda: user.line("project"))
        assert "no space left" in user.line("project").lower()
        assert user.session.storage.unsaved
        assert (user.labels == 3).any()
        assert user.do(user.widget.learn) == "failed"
        assert "no space left" in user.line("learn").lower()
    user.session.storage.save()
    user.settle()
    assert not user.line("project")
    stored = user.session.storage.keeper.project.items[0]
    np.testing.assert_array_equal(stored.labels(), user.labels)


@pytest.mark.parametrize("is_there", [True, False])
def test_work_is_saved_elsewhere_where_its_project_cannot_be_written(
    user, photograph, tmp_path, monkeypatch, is_there
) -> None:
    storage, stick, rescue = user.session.storage, tmp_path / "stick", tmp_path / "rescue"
    user.viewer.add_image(photograph, name="photo")
    user.do(user.widget.segment)
    assert user.do(lambda: storage.save_as(stick)) == "save"
    user.settle()
    saved = user.labels.copy()
    if is_there:  # but full
        monkeypatch.setattr(storage.keeper.project, "set_labels", full)
    else:
        stick.rename(tmp_path / "pulled out")
    user.bench.paint_with(3)
    user.drag((30, 30), (60, 60))
    storage.flushing.emit()
    storage.save()
    user.wait(lambda: storage.unsaved and user.line("project"))
    assert user.do(storage.begin) == "failed"  # what is not saved is not left
    assert user.do(lambda: storage.save_as(rescue)) == "save"
    user.settle()
    assert storage.keeper.path == rescue
    assert not storage.unsaved
    assert ("rounds" in user.line("project")) == (not is_there)
    (item,) = storage.keeper.project.items
    np.testing.assert_array_equal(item.labels(), user.labels)
    np.testing.assert_array_equal(item.image(), photograph)
    assert (item.labels() != saved).sum() > 100
    assert user.do(storage.begin) == "open"
    if not is_there:
        with Project.open(tmp_path / "pulled out") as before:
            np.testing.assert_array_equal(before.items[0].labels(), saved)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_values_that_are_no_class_do_not_keep_the_rest_from_being_saved(user, photograph) -> None:
    user.viewer.add_image(photograph, name="photo")
    user.do(user.widget.segment)
    user.settle()
    before = user.labels.copy()
    said: list[str] = []  # the stroke, if it ends later, takes the line away
    user.session.changed.connect(lambda: said.append(user.line("classes")))
    labels = user.viewer.layers["photo · labels"]
    labels.data[20:25, 20:25] = 200  # a script, or another plugin
    labels.refresh()
    user.bench.paint_with(3)
    user.drag((30, 30), (60, 60))
    user.wait(lambda: any("25 px of photo had labels that are no class (200)" in line for line in said))
    user.settle()
    assert (user.labels[20:25, 20:25] == 255).all()
    assert not user.line("project")
    assert not user.session.storage.unsaved
    stored = user.session.storage.keeper.project.items[0].labels()
    np.testing.assert_array_equal(stored, user.labels)
    painted = user.bench.work.held(())
    assert (stored[painted & (before != 255)] == 3).sum() > 100


def test_what_is_refused_at_first_is_saved_before_anything_goes_on(user, photograph, monkeypatch) -> None:
    storage = user.session.storage
    user.viewer.add_image(photograph, name="photo")
    user.do(user.widget.segment)
    user.settle()
    user.bench.paint_with(3)
    user.drag((30, 30), (60, 60))
    labels = user.viewer.layers["photo · labels"]
    labels.data[20:25, 20:25] = 200
    labels.refresh()
    save, stored = type(storage.keeper).save, []

    def slowly(keeper: Any, *arguments: Any) -> Any:
        time.sleep(0.3)
        return save(keeper, *arguments)

    monkeypatch.setattr(type(storage.keeper), "save", slowly)
    busy = Busy("save", "Saving…")

    def then() -> None:
        stored.append(storage.keeper.project.items[0].labels())
        user.session.tasks.conclude(busy)

    user.do(lambda: storage.when_saved(busy, then))
    np.testing.assert_array_equal(stored[0], user.labels)
    assert (stored[0][20:25, 20:25] == 255).all()


def test_a_label_that_is_no_class_leaves_the_brush_as_it_was(user, photograph) -> None:
    user.viewer.add_image(photograph, name="photo")
    user.do(user.widget.segment)
    user.bench.labelling.set_per_class(False)
    labels = user.viewer.layers["photo · labels"]
    user.viewer.layers.selection.active = labels
    for chosen in (3, 5):
        labels.selected_label = chosen
        labels.selected_label = 100  # in napari's own field, or its "new label"
        assert labels.selected_label == chosen
        name = user.session.table.names[chosen]
        assert user.line("classes") == f"There is no class 100: add one first. The brush still paints {name}."
    labels.selected_label = 255  # erasing
    labels.selected_label = 100
    assert labels.selected_label == 255
    assert user.line("classes").endswith("The brush still paints nothing.")
    user.bench.paint_with(3)
    user.drag((30, 30), (60, 60))
    user.settle()
    assert not user.line("classes")  # that is over
    user.widget.classes.table.renamed.emit(3, "  ")
    assert user.line("classes") == "Name: a class name must not be blank."


def test_two_widgets_of_a_viewer_show_the_same_work(user, photograph) -> None:
    from napari_crfasrnn._qt.widget import SegmentationWidget

    second = SegmentationWidget(user.viewer)
    user.viewer.window.add_dock_widget(second, name="second")
    user.viewer.add_image(photograph, name="photo")
    assert user.do(second.segment) == "segment"
    user.settle()
    names = [layer.name for layer in user.viewer.layers]
    assert names.count("photo · labels") == 1
    assert second.session is user.session
    assert second.classes.table.rows.rows == user.widget.classes.table.rows.rows
    user.viewer.window.remove_dock_widget(second)
    QTest.qWait(50)
    user.bench.paint_with(3)
    user.drag((30, 30), (60, 60))
    user.settle()
    assert "px edited" in user.widget.correct.note.toolTip()
