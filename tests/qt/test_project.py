"""What was done is on the disk, and comes back."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import rmtree
from threading import Event
from time import sleep
from typing import Any

import numpy as np
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QFileDialog
from window_user import User

from napari_crfasrnn import Project
from napari_crfasrnn._qt.layers import ImageInput, key_of, mark_of
from napari_crfasrnn._qt.state import storage
from napari_crfasrnn._qt.state.keeper import Keeper
from napari_crfasrnn._qt.state.recents import NAMED, data_dir, recent_projects
from napari_crfasrnn.project import export_project
from napari_crfasrnn.training import open_data_set


def test_work_is_kept_without_asking_and_comes_back(user, make_napari_viewer, photograph, tmp_path) -> None:
    image = user.viewer.add_image(
        photograph, name="photo", scale=(0.5, 0.25), units=("um", "um"), translate=(1, 2)
    )
    assert user.do(user.widget.segment) == "segment"
    user.session.classes.rename(15, "human")
    user.session.classes.add("flag")
    user.session.classes.recolor(21, (1, 2, 3))
    QTest.qWait(50)
    user.bench.paint_with(21)
    user.drag((20, 5), (60, 5))
    user.click(user.widget.correct.accept)
    user.settle()
    assert "100 % verified" in user.widget.correct.note.toolTip()
    target = tmp_path / "saved here"
    assert user.do(lambda: user.session.storage.save_as(target)) == "save"
    assert "saved here" in user.widget.project.title.text()
    user.bench.paint_with(21)
    user.drag((80, 5), (110, 5))  # goes to the new place
    image.name, image.scale, image.units = "photograph", (2, 3), ("nm", "nm")  # and so does this
    user.settle()
    labels, baseline = user.labels.copy(), user.bench.work.baseline.copy()

    # Closing saves; another viewer opens it again.
    user.viewer.window.remove_dock_widget(user.dock)
    QTest.qWait(50)
    other = User(make_napari_viewer(show=True))
    assert other.do(lambda: other.session.storage.open(target)) == "open"
    other.settle()
    again = other.viewer.layers["photograph"]
    np.testing.assert_array_equal(again.data, photograph)
    assert again.rgb
    np.testing.assert_array_equal(again.scale, image.scale)
    np.testing.assert_array_equal(again.translate, image.translate)
    assert again.units == image.units
    np.testing.assert_array_equal(other.labels, labels)
    np.testing.assert_array_equal(other.bench.work.baseline, baseline)
    assert other.bench.work.verified.mean() > 0.9
    assert other.session.table.names[15] == "human"
    assert other.session.table.classes[21].color == (1, 2, 3)
    assert other.viewer.layers["photograph · flag"].units == image.units
    (item,) = other.session.storage.keeper.project.items
    assert (item.spacing, item.units[:2]) == ((2, 3), ("nanometer", "nanometer"))
    other.session.cancel()


def test_a_widget_that_is_opened_again_goes_on(user, photograph) -> None:
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    user.bench.paint_with(3)
    user.drag((20, 20), (60, 20))
    user.settle()
    labels, baseline = user.labels.copy(), user.bench.work.baseline.copy()
    user.viewer.window.remove_dock_widget(user.dock)
    QTest.qWait(50)
    names = [layer.name for layer in user.viewer.layers]

    again = User(user.viewer)
    assert again.session is not user.session
    again.wait(lambda: again.bench.group is not None and not again.bench.group.class_layers.growing)
    assert sorted(layer.name for layer in user.viewer.layers) == sorted(names)
    np.testing.assert_array_equal(again.labels, labels)
    np.testing.assert_array_equal(again.bench.work.baseline, baseline)
    again.bench.paint_with(15)
    again.drag((20, 40), (60, 40))
    assert (again.labels == 15).sum() > (labels == 15).sum()
    again.settle()
    assert len(again.session.storage.keeper.project.items) == 1
    again.session.cancel()


def test_a_project_that_another_window_has_is_opened_read_only(user, photograph, tmp_path) -> None:
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    path = user.session.storage.keeper.path
    user.session.storage.open(path)
    assert "open already" in user.line("project")
    assert user.do(user.session.storage.begin) == "open"
    user.settle()
    with Project.open(path):
        assert user.do(lambda: user.session.storage.open(path)) == "open"
        assert "read-only" in user.line("project")
        # Nobody painted: it can be left, and nothing of it is said of the next one.
        assert user.do(user.session.storage.begin) == "open"
        user.settle()
        assert "read-only" not in user.line("project")
        # What is painted keeps it open, and goes on in a copy.
        assert user.do(lambda: user.session.storage.open(path)) == "open"
        user.bench.paint_with(15)
        user.drag((20, 20), (60, 20))
        assert user.do(user.session.storage.begin) == "failed"
        assert "Save as" in user.line("project")
        assert user.do(lambda: user.session.storage.save_as(tmp_path / "copy")) == "save"
        user.settle()
        assert user.labels[40, 20] == 15
        np.testing.assert_array_equal(labels_of(tmp_path / "copy"), user.labels)


def test_what_a_project_does_not_take_is_kept_when_the_window_closes(user, photograph, tmp_path) -> None:
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    path = user.session.storage.keeper.path
    assert user.do(user.session.storage.begin) == "open"
    user.settle()
    with Project.open(path):
        assert user.do(lambda: user.session.storage.open(path)) == "open"
        user.bench.paint_with(15)
        user.drag((20, 20), (60, 20))
        user.wait(lambda: user.session.storage.fails)
        user.wait(lambda: user.widget.project.note.text().endswith("read-only"))
        before = labels_of(path)
        painted = user.labels.copy()
        assert painted[40, 20] == 15
        user.session.close()
    (rescued,) = [folder for folder in data_dir().iterdir() if "rescued" in folder.name]
    np.testing.assert_array_equal(labels_of(rescued), painted)
    np.testing.assert_array_equal(labels_of(path), before)


def test_an_image_that_cannot_be_read_keeps_no_other_from_being_opened(user, tmp_path) -> None:
    _project_of_images(tmp_path / "project", 3)
    with Project.open(tmp_path / "project") as project:
        (file,) = [each for each in (project.path / "arrays").iterdir() if "000001_image" in each.name]
    file.unlink()
    assert user.do(lambda: user.bench.projects.open(tmp_path / "project")) == "open"
    user.settle()
    assert len(user.bench.labelling.groups) == 2
    assert "cannot be read" in user.line("project")
    assert [item.name for item in user.bench.projects.closed_items] == ["image 0"]
    user.session.cancel()


class SlowReading:
    """Lets an image of a project be read only when it is told to."""

    def __init__(self, monkeypatch: Any) -> None:
        self.begun, self.go_on = Event(), Event()
        read = Keeper.read

        def slowly(keeper: Keeper, *arguments: Any) -> Any:
            self.begun.set()
            assert self.go_on.wait(20)
            return read(keeper, *arguments)

        monkeypatch.setattr(Keeper, "read", slowly)


def labels_of(path: Path) -> np.ndarray:
    with Project.open(path, read_only=True) as project:
        (item,) = project.items
        return item.labels()


def test_strokes_belong_to_the_project_they_were_painted_in(user, photograph, tmp_path, monkeypatch) -> None:
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    first, other = user.session.storage.keeper.path, tmp_path / "other"
    with Project.create(other, user.session.table.classes) as project:
        project.add(photograph[::-1], name="another", labels=np.zeros(photograph.shape[:2], np.uint8))
    user.bench.paint_with(15)

    # Cancelled: the project stays, what is painted then goes on to be saved in it, and the other one is free.
    slow = SlowReading(monkeypatch)
    user.session.storage.open(other)
    user.wait(slow.begun.is_set)
    user.drag((20, 5), (60, 5))
    user.session.cancel()
    slow.go_on.set()
    user.drag((20, 15), (60, 15))
    user.settle()
    assert user.session.storage.keeper.path == first
    np.testing.assert_array_equal(labels_of(first), user.labels)
    assert (user.labels[40, (5, 15)] == 15).all()
    monkeypatch.undo()
    assert user.do(lambda: user.session.storage.open(other)) == "open"  # and once more: it is free
    assert "read-only" not in user.line("project")
    assert user.do(lambda: user.session.storage.open(first)) == "open"
    user.settle()

    # Opened: what was painted while it was read is of the project before.
    user.bench.paint_with(15)
    slow = SlowReading(monkeypatch)
    user.session.storage.open(other)
    user.wait(slow.begun.is_set)
    user.drag((20, 25), (60, 25))
    labels = user.labels.copy()
    assert labels[40, 25] == 15
    assert user.do(slow.go_on.set) == "open"
    user.settle()
    np.testing.assert_array_equal(labels_of(first), labels)
    assert not labels_of(other).any()
    assert user.session.storage.keeper.path == other


def test_what_is_painted_while_a_project_is_copied_is_in_the_copy(
    user, photograph, tmp_path, monkeypatch
) -> None:
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    begun, go_on = Event(), Event()
    save_as = Project.save_as

    def slowly(project: Project, path: Path) -> Path:
        saved = save_as(project, path)
        begun.set()
        assert go_on.wait(20)
        return saved

    monkeypatch.setattr(Project, "save_as", slowly)
    user.bench.paint_with(15)
    user.session.storage.save_as(tmp_path / "copy")
    user.wait(begun.is_set)
    user.drag((20, 25), (60, 25))
    assert user.do(go_on.set) == "save"
    user.settle()
    assert user.labels[40, 25] == 15
    np.testing.assert_array_equal(labels_of(tmp_path / "copy"), user.labels)

    # Cancelled, there is no copy, and the project is found where it was.
    begun.clear()
    go_on.clear()
    user.session.storage.save_as(tmp_path / "another")
    user.wait(begun.is_set)
    user.session.cancel()
    go_on.set()
    user.wait(lambda: not (tmp_path / "another").exists())
    user.settle()
    assert user.session.storage.keeper.path == tmp_path / "copy"
    assert [recent.path for recent in recent_projects()] == [tmp_path / "copy"]


def test_a_project_is_exported_as_a_training_set(user, photograph, tmp_path, monkeypatch) -> None:
    project, target = user.widget.project, tmp_path / "out" / "set"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(target), ""))
    assert not project.to_export["all"].isEnabled()
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    user.bench.paint_with(3)
    user.drag((30, 30), (60, 60))
    assert user.do(project.to_export["all"].trigger) == "export"  # what was just painted is in it
    assert user.line("project") == "Exported to set: 1 image, 1 to train on and none to validate with."
    read = open_data_set(target)
    image, labels = read.load(read.train[0])
    np.testing.assert_array_equal(image, np.moveaxis(photograph, -1, 0))
    np.testing.assert_array_equal(labels, user.labels)

    assert user.do(project.to_export["settled"].trigger) == "failed"
    assert "must be a new or empty folder" in user.line("project")
    rmtree(target)
    assert user.do(project.to_export["settled"].trigger) == "export"
    settled = read.labels(read.train[0])
    assert set(np.unique(settled)) == {3, 255}
    assert (settled == 3).sum() == user.session.numbers[user.bench.key].summary.n_labelled

    rmtree(target)
    assert user.do(project.to_export["coco"].trigger) == "export"
    (written,) = target.rglob("*train*.json")
    told = json.loads(written.read_text())
    classes = {category["id"]: category["name"] for category in told["categories"]}
    assert {classes[each["category_id"]] for each in told["annotations"]} >= {user.session.table.names[3]}


def test_an_export_is_cancelled_and_leaves_nothing(user, photograph, tmp_path, monkeypatch) -> None:
    begun, ended = Event(), Event()

    def slow(*args: Any, progress: Any, cancel: Any, **options: Any) -> Any:
        progress(1, 4)
        begun.set()
        while not cancel():
            sleep(0.01)
        try:
            return export_project(*args, **options)  # as if it had been too late
        finally:
            ended.set()

    monkeypatch.setattr(storage, "export_project", slow)
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    project = user.widget.project
    target = tmp_path / "out" / "set"
    user.session.storage.export(target, "all")
    user.wait(begun.is_set)
    user.wait(lambda: project.progress.bar.value() == 1)
    assert project.progress.isVisible()
    assert not project.export.isVisible()
    assert user.do(lambda: user.click(project.progress.cancel)) == "cancelled"
    assert project.export.isVisible()
    user.wait(ended.is_set)
    user.wait(lambda: not target.exists())
    user.settle()
    assert not any((tmp_path / "out").iterdir())


def test_what_is_no_project_is_refused(user, tmp_path) -> None:
    (tmp_path / "no project").mkdir()
    for name in ("nothing", "no project"):
        assert user.do(lambda name=name: user.session.storage.open(tmp_path / name)) == "failed"
        assert name in user.line("project")


def test_earlier_work_is_offered(user, photograph, make_napari_viewer) -> None:
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    other = User(make_napari_viewer(show=True))
    other.wait(lambda: other.session.storage.recents)
    assert [recent.title for recent in other.session.storage.recents] == ["photo"]
    other.session.cancel()


def test_a_project_that_was_saved_by_name_is_offered_by_it(
    user, photograph, make_napari_viewer, tmp_path
) -> None:
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    assert user.do(lambda: user.session.storage.save_as(tmp_path / "larvae")) == "save"
    user.settle()
    assert user.session.storage.recents == []  # what it was before it had a name is no other project
    assert list(user.bench.labelling.leftovers()) == [tmp_path / "larvae"]  # nor where a new widget goes on
    other = User(make_napari_viewer(show=True))
    other.wait(lambda: other.session.storage.recents)
    assert [recent.title for recent in other.session.storage.recents] == ["larvae"]
    menu = other.widget.project.open.menu()
    other.wait(lambda: any(action.text().startswith("larvae") for action in menu.actions()))
    other.session.cancel()
    # A list that cannot be read costs nothing but the names in it; the same holds for folders that are gone.
    named = data_dir() / NAMED
    assert str(tmp_path / "larvae") in named.read_text()
    for text in ("{", json.dumps([str(tmp_path / "gone")])):
        named.write_text(text)
        assert [recent.title for recent in recent_projects()] == ["photo"]


def test_a_new_project_begins_with_the_images_that_are_open(user, photograph) -> None:
    def new() -> Any:
        (action,) = [a for a in user.widget.project.open.menu().actions() if a.text() == "New project"]
        return action

    image = user.viewer.add_image(photograph, name="photo")
    user.settle()
    QTest.qWait(50)
    assert not new().isEnabled()
    assert "is new" in new().toolTip()
    assert user.do(user.widget.segment) == "segment"
    user.session.classes.add("flag")
    user.bench.paint_with(21)
    user.drag((20, 5), (60, 5))
    user.settle()
    first, labels = user.session.storage.keeper.path, user.labels.copy()
    assert (labels == 21).any()
    assert user.do(lambda: new().trigger()) == "open"
    user.settle()
    assert list(user.viewer.layers) == [image]
    assert user.bench.image is image
    assert user.session.storage.keeper.project is None
    assert "flag" not in user.session.table.names
    assert user.session.table.names == user.session.shelf.choice.class_names
    assert user.session.works == {}
    assert not new().isEnabled()
    assert not user.bench.labelling.leftovers()  # so a widget that is opened again does not go on there
    assert [recent.path for recent in user.session.storage.recents] == [first]

    # What is done now is of another project, and the first one has all that was done before.
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    second = user.session.storage.keeper.path
    assert second != first
    other = user.viewer.add_image(photograph[::-1], name="photo")  # of the same name, but another image
    assert user.do(lambda: user.widget.project.open_wanted.emit(str(first))) == "open"
    user.settle()
    layers = [layer for layer in user.viewer.layers if " · " not in layer.name]
    assert layers == [image, other]  # the image that was open is used
    user.bench.choose_image(key_of(image))
    np.testing.assert_array_equal(user.labels, labels)
    assert user.session.table.names[21] == "flag"


def test_what_a_project_says_of_an_image_stays_where_nobody_changed_it(user, photograph, tmp_path) -> None:
    grey = photograph[:60, :80, 0]
    with Project.create(tmp_path / "made in Python", ["background", "face"]) as project:
        project.add(grey, name="photo", spacing=(0.5, 0.1), units=("um", "um"), metadata={"patient": 7})
    user.viewer.add_image(photograph, name="photo")  # so napari calls the other one "photo [1]"
    assert user.do(lambda: user.session.storage.open(tmp_path / "made in Python")) == "open"
    layer = user.viewer.layers["photo [1]"]
    np.testing.assert_array_equal(layer.scale, (0.5, 0.1))
    user.bench.choose_image(key_of(layer))
    labels = user.labels.copy()
    labels[2:9, 2:9] = 1
    user.bench.group.write(labels)
    user.settle()
    (item,) = user.session.storage.keeper.project.items
    assert (item.labels() == 1).any()
    assert (item.name, item.spacing, item.units) == ("photo", (0.5, 0.1), ("um", "um"))
    assert item.metadata["patient"] == 7
    layer.name = "face"
    user.settle()
    (item,) = user.session.storage.keeper.project.items
    assert (item.name, item.spacing, item.metadata["patient"]) == ("face", (0.5, 0.1), 7)


def test_an_image_is_known_by_its_name_and_pixels(tmp_path) -> None:
    class Gone:
        """An array whose file is no longer there."""

        shape, dtype = (3, 40, 50), np.dtype(np.float32)

        def __getitem__(self, index: Any) -> Any:
            raise RuntimeError("no such file")

    def shown(array: Any, name: str = "stack") -> ImageInput:
        return ImageInput("", name, array, "ZYX", (1.0, 1.0, 1.0), (3,), (40, 50))

    stack = np.random.default_rng(0).random((3, 40, 50)).astype(np.float32)
    stack[2, 5, 7] = np.nan
    other = stack.copy()
    other[2, 30, 30] += 1
    with Project.create(tmp_path / "project", ["background", "cell"]) as project:
        item = project.add(stack, name="stack", axes="ZYX")
        keeper = Keeper()
        assert (
            keeper.find(item, {"a": shown(other), "b": shown(stack, "another"), "c": shown(stack.copy())})
            == "c"
        )
        assert keeper.find(item, {"a": shown(Gone()), "c": shown(stack)}) == "c"
        assert keeper.find(item, {"a": shown(other), "b": shown(stack.astype(np.float64))}) is None


def test_a_project_without_rounds_is_opened_with_a_model_that_knows_its_classes(
    user, make_napari_viewer, photograph
) -> None:
    user.bench.open_sample("cell")
    assert user.do(user.widget.segment) == "segment"
    user.bench.paint_with(1)
    user.drag((20, 5), (60, 5))
    user.settle()
    assert user.session.shelf.choice.name == "nuclei-fluorescence"
    other = User(make_napari_viewer(show=True))
    other.wait(lambda: other.session.shelf.choice is not None and other.session.storage.recents)
    assert other.session.shelf.choice.name == "starter"
    path = user.session.storage.keeper.path
    assert other.do(lambda: other.bench.projects.open(path)) == "open"
    other.settle()
    assert other.session.shelf.choice.name == "nuclei-fluorescence"
    assert not other.session.table.is_unknown
    assert other.widget.start.task.button.isEnabled()
    other.session.cancel()


def test_all_images_of_a_project_count_when_it_is_opened(
    user, photograph, make_napari_viewer, tmp_path
) -> None:
    for name, image in (("one", photograph), ("two", photograph[::-1])):
        user.viewer.add_image(image, name=name)
        user.bench.paint_with(15)
        user.drag((100, 100), (140, 110))
        user.settle()
    material = user.widget.learning.note.toolTip()
    assert material.endswith("px in 2 images")
    assert user.do(lambda: user.session.storage.save_as(tmp_path / "two")) == "save"
    other = User(make_napari_viewer(show=True))
    other.wait(lambda: other.session.shelf.choice is not None)
    assert other.do(lambda: other.session.storage.open(tmp_path / "two")) == "open"
    other.settle()
    assert other.widget.learning.note.toolTip() == material
    other.session.cancel()


def _project_of_images(path: Path, n_images: int) -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[:20], labels[40:] = 1, 2
    with Project.create(path, ["background", "cell", "wall"]) as project:
        for number in range(n_images):
            project.add(np.full((64, 64), 10 * number, np.uint8), labels=labels, name=f"image {number}")


def test_only_the_image_that_is_worked_on_gets_class_layers(user, tmp_path) -> None:
    def class_layers() -> list[str]:
        return sorted(layer.name for layer in user.viewer.layers if mark_of(layer).get("role") == "class")

    _project_of_images(tmp_path / "project", 3)
    assert user.do(lambda: user.bench.projects.open(tmp_path / "project")) == "open"
    user.settle()
    third, second, first = user.bench.labelling.groups
    assert user.bench.key == third
    user.wait(lambda: len(class_layers()) == 2)
    assert class_layers() == ["image 2 · cell", "image 2 · wall"]
    # Those of other images are drawn by their combined layers.
    assert set(user.bench.labelling.groups[first].combined.colormap.color_dict) == {None, 0, 1, 2}

    user.bench.choose_image(first)
    user.wait(lambda: len(class_layers()) == 4)
    assert class_layers() == ["image 0 · cell", "image 0 · wall", "image 2 · cell", "image 2 · wall"]
    assert set(user.bench.labelling.groups[first].combined.colormap.color_dict) == {None, 0}
    user.bench.select_image(second)
    user.bench.paint_with(2)  # at once
    assert user.viewer.layers.selection.active.name == "image 1 · wall"
    user.settle()

    user.session.classes.delete(1)  # all are made anew, for the image that is worked on
    user.settle()
    user.wait(lambda: class_layers() == ["image 1 · wall"])
    user.session.cancel()


def test_images_of_a_project_come_one_at_a_time(user, tmp_path) -> None:
    _project_of_images(tmp_path / "project", 4)
    _project_of_images(tmp_path / "other", 2)
    seen = []
    user.bench.projects.open(tmp_path / "project")
    user.wait(lambda: user.bench.labelling.groups)
    while user.bench.projects.busy:
        seen.append(len(user.bench.labelling.groups))
        QTest.qWait(0)
    assert len(set(seen)) > 1, seen  # the window had turns of its own between them
    assert len(user.bench.labelling.groups) == 4
    user.settle()

    user.do(lambda: user.bench.projects.open(tmp_path / "other"))
    user.do(lambda: user.bench.projects.open(tmp_path / "project"))
    # Left while its images come: no more do, and none is lost.
    assert user.do(lambda: user.bench.projects.open(tmp_path / "other")) == "open"
    user.settle()
    assert [item.name for item in user.session.storage.keeper.project.items] == ["image 0", "image 1"]
    assert len(user.bench.labelling.groups) == 2
    with Project.open(tmp_path / "project") as project:
        assert len(project.items) == 4
        assert all((item.labels().max() == 2) for item in project.items)
    user.session.cancel()


def _begin_to_open(user: User, path: Path) -> None:
    """Open a project; its first image is there, and the others are still to come."""
    user.bench.projects.open(path)
    user.wait(lambda: user.bench.labelling.groups)
    assert user.bench.projects.busy


def test_images_that_come_leave_a_person_alone(user, tmp_path) -> None:
    _project_of_images(tmp_path / "project", 5)
    _begin_to_open(user, tmp_path / "project")
    first = user.bench.key  # the topmost
    user.bench.paint_with(2)
    active = user.viewer.layers.selection.active
    user.settle()
    assert user.bench.key == first
    assert user.viewer.layers.selection.active is active
    assert user.bench.painting == 2
    shown = [layer.name for layer in user.viewer.layers if mark_of(layer).get("role") is None]
    assert shown == [f"image {number}" for number in range(5)]
    assert user.bench.image.name == "image 4"
    user.session.cancel()


def test_who_removes_all_layers_is_not_sent_more(user, tmp_path) -> None:
    _project_of_images(tmp_path / "project", 5)
    _begin_to_open(user, tmp_path / "project")
    user.viewer.layers.clear()
    assert not user.bench.projects.busy
    user.settle()
    QTest.qWait(50)
    assert not user.viewer.layers
    assert sorted(item.name for item in user.bench.projects.closed_items) == [f"image {n}" for n in range(5)]
    user.do(lambda: user.bench.projects.open_item(user.bench.projects.closed_items[0].id))
    assert len(user.bench.labelling.groups) == 1
    user.session.cancel()


def test_how_many_images_were_opened_is_said_until_there_are_others(user, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(storage, "MOST_IMAGES", 2)
    _project_of_images(tmp_path / "project", 3)
    user.do(lambda: user.bench.projects.open(tmp_path / "project"))
    assert user.line("project") == "2 of 3 images opened."
    user.do(lambda: user.bench.projects.open_item(user.bench.projects.closed_items[0].id))
    assert user.line("project") == ""
    user.session.cancel()


def test_classes_may_change_while_images_come(user, tmp_path) -> None:
    _project_of_images(tmp_path / "project", 4)
    _begin_to_open(user, tmp_path / "project")
    user.session.classes.add("stone")
    user.session.classes.delete(1)  # "cell": the others have other values now
    user.settle()
    assert list(user.session.table.names) == ["background", "wall", "stone"]
    assert len(user.bench.labelling.groups) == 4
    for group in user.bench.labelling.groups.values():
        assert (group.labels[:20] == 255).all()
        assert (group.labels[40:] == 1).all()
    with Project.open(tmp_path / "project", read_only=True) as project:
        assert all(set(np.unique(item.labels())) == {0, 1, 255} for item in project.items)
    user.session.cancel()


def test_what_was_accepted_is_so_when_the_project_is_opened_again(user, make_napari_viewer, tmp_path) -> None:
    _project_of_images(tmp_path / "project", 2)
    assert user.do(lambda: user.bench.projects.open(tmp_path / "project")) == "open"
    user.settle()
    user.click(user.widget.correct.accept)
    user.settle()
    user.viewer.window.remove_dock_widget(user.dock)
    QTest.qWait(50)
    other = User(make_napari_viewer(show=True))
    assert other.do(lambda: other.bench.projects.open(tmp_path / "project")) == "open"
    other.settle()
    first, second = other.bench.labelling.groups
    assert other.bench.key == first
    assert "Accepted" in other.widget.correct.accept.text()
    other.click(other.widget.correct.accept)
    other.settle()
    assert "Accepted" not in other.widget.correct.accept.text()
    assert not other.bench.work.verified.any()
    other.bench.choose_image(second)
    other.settle()
    assert "Accepted" not in other.widget.correct.accept.text()
    other.session.cancel()


def test_an_image_that_is_left_at_once_is_counted(user, tmp_path) -> None:
    _project_of_images(tmp_path / "project", 2)
    assert user.do(lambda: user.bench.projects.open(tmp_path / "project")) == "open"
    user.settle()
    first, second = user.bench.labelling.groups
    user.bench.accept()
    user.bench.choose_image(second)
    user.settle()
    assert user.session.numbers[first].summary.n_verified == 64 * 64
    user.session.cancel()


def test_a_person_goes_on_painting_when_another_class_is_deleted(user, tmp_path) -> None:
    _project_of_images(tmp_path / "project", 1)
    assert user.do(lambda: user.bench.projects.open(tmp_path / "project")) == "open"
    user.settle()
    user.bench.paint_with(2)
    user.viewer.layers.selection.active.brush_size = 7
    user.session.classes.delete(1)
    user.settle()
    active = user.viewer.layers.selection.active
    assert active.name == "image 0 · wall"
    assert (user.bench.painting, active.mode, active.brush_size) == (1, "paint", 7)
    user.session.classes.delete(1)  # the one that is painted with
    user.settle()
    active = user.viewer.layers.selection.active
    assert (active.name, active.mode) == ("image 0 · labels", "pan_zoom")
    user.session.cancel()


def test_a_sample_is_earlier_work_only_when_somebody_corrected_it(user, make_napari_viewer) -> None:
    def offered() -> list[str]:
        other = User(make_napari_viewer(show=True))
        other.wait(lambda: other.session.shelf.choice is not None)
        other.settle()
        other.session.cancel()
        return [recent.title for recent in other.session.storage.recents]

    user.bench.open_sample("cell")
    assert user.do(user.widget.segment) == "segment"
    user.settle()
    assert user.session.storage.keeper.project.items[0].metadata["sample"] == "cell"
    assert offered() == []
    user.bench.paint_with(1)
    labels = user.labels.copy()
    labels[:20, :20] = 1
    user.bench.group.write(labels)
    user.settle()
    assert offered() == ["cell"]


def test_the_model_is_saved_with_its_classes(user, tmp_path) -> None:
    from napari_crfasrnn import load_model

    user.session.classes.add("flag")
    path = tmp_path / "mine.safetensors"
    assert user.do(lambda: user.session.save_model(path)) == "save"
    assert load_model(path).classes[-1].name == "flag"
    assert user.do(lambda: user.session.shelf.open(path)) == "load"
    assert user.widget.start.model.currentText() == "mine"
