"""Rounds of learning in the widget: never lost, put in force again, compared side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QDialog
from window_user import User

from napari_crfasrnn import Project, Segmenter
from napari_crfasrnn._qt.comparing import describe
from napari_crfasrnn._qt.layers.frame import NAME as FRAME
from napari_crfasrnn._qt.present import NOT_KEPT, STILL_EARLIER, learn_state
from napari_crfasrnn._qt.rounds import describe as describe_round
from napari_crfasrnn._qt.rounds import round_rows
from napari_crfasrnn._qt.state.telling import BESIDE
from napari_crfasrnn.classes import class_table
from napari_crfasrnn.config import TrainConfig
from napari_crfasrnn.edits import compare_labels
from napari_crfasrnn.training import TrainReport, TrainStep
from napari_crfasrnn.training.report import LockedScore

FLAG = 21
LESSON = TrainConfig(seconds=None, max_iterations=6, crf_iterations=0)
N_BESIDE = 60  # iterations of experts beside a network, at most


@pytest.fixture
def teacher(user: User, photograph: np.ndarray) -> User:
    """Somebody who has shown the model part of a flag that it does not know."""
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    user.session.classes.add("flag")
    user.bench.paint_with(FLAG)  # at once
    assert user.line("classes") == BESIDE
    teach(user, np.s_[100:250, 0:16])
    return user


def teach(user: User, part: tuple[slice, slice]) -> None:
    labels = user.labels.copy()
    labels[part] = FLAG
    user.bench.group.write(labels)
    user.settle()


def learn(user: User) -> None:
    assert user.do(lambda: user.widget.learn(LESSON)) == "learn"
    user.settle()


def opened_again(user: User, make_napari_viewer: Any, target: Path) -> User:
    """Save somebody's project by name, close the widget, and open it as somebody else."""
    assert user.do(lambda: user.session.storage.save_as(target)) == "save"
    user.viewer.window.remove_dock_widget(user.dock)
    QTest.qWait(50)
    other = User(make_napari_viewer(show=True))
    other.wait(lambda: other.session.shelf.choice is not None)
    assert other.do(lambda: other.session.storage.open(target)) == "open"
    other.settle()
    return other


def entries(user: User) -> dict[str, Any]:
    return {action.text(): action.menu() for action in user.widget.learning.rounds.menu().actions()}


def test_a_round_is_on_the_disk_before_anybody_keeps_it(
    teacher: User, make_napari_viewer: Any, tmp_path: Any
) -> None:
    user = teacher
    assert not user.widget.learning.rounds.isVisible()
    learn(user)
    project = user.session.storage.keeper.project
    # What a kill would leave now: a round that is not in force, with its report and its model.
    with Project.open(project.path, read_only=True) as left:
        (one,) = left.rounds
        assert left.current_round is None
        assert one.report["n_training_pixels"] == user.session.lessons.report.n_training_pixels
        assert len(one.report["history"]) == LESSON.max_iterations
        assert one.report["config"]["seed"] == 0
        assert left.model(1).classes[FLAG].name == "flag"
    assert "Keep or discard" in user.widget.learning.rounds.toolTip()

    # Discarded, it is gone; learnt and kept again, it is in force.
    user.click(user.widget.learning.discard)
    user.settle()
    assert project.rounds == ()
    assert user.session.shelf.choice.name == "starter"
    learn(user)
    assert user.do(lambda: user.click(user.widget.learning.keep)) == "save"
    user.settle()
    assert project.current_round.number == 1
    first = user.session.engine.model(user.session.request())

    # Left undecided, the next round waits in the project, and what was kept is used.
    teach(user, np.s_[100:250, 16:30])
    learn(user)
    other = opened_again(user, make_napari_viewer, tmp_path / "saved")
    assert other.session.shelf.choice.name == "round:1"
    assert [done.number for done in other.session.rounds.all] == [1, 2]
    again = other.session.engine.model(other.session.request())
    weights = again.network.state_dict()
    assert all(bool((weights[name] == value).all()) for name, value in first.network.state_dict().items())
    assert "round:2" in [choice.name for choice in other.session.shelf.models]

    assert other.widget.correct.message.label.text() == NOT_KEPT  # squares and uncertainty wait for that
    assert not other.widget.correct.patch.isEnabled()

    # It may still be kept, or discarded.
    message = other.widget.learning.message
    assert message.label.text() == "Round 2 was neither kept nor discarded."
    keep, discard, compare = message.buttons
    assert [each.text() for each in (keep, discard, compare)] == ["Keep", "Discard", "Compare"]
    assert other.do(lambda: other.click(compare)) == "compare"
    assert message.label.text().startswith("Left: Round 1. Right: Round 2.")
    other.click(message.buttons[0])  # back
    other.settle()
    QTest.qWait(50)
    assert message.label.text() == "Round 2 was neither kept nor discarded."
    other.click(message.buttons[0])
    other.settle()
    QTest.qWait(50)
    assert message.label.text() == "Kept as round 2. Labels stay as they are until you segment again."
    assert other.session.shelf.choice.name == "round:2"
    assert other.session.storage.keeper.project.current_round.number == 2
    assert "neither" not in message.label.text()
    other.session.cancel()


def test_a_round_left_undecided_may_be_discarded_later(
    teacher: User, make_napari_viewer: Any, tmp_path: Any
) -> None:
    learn(teacher)
    other = opened_again(teacher, make_napari_viewer, tmp_path / "saved")
    assert other.session.shelf.choice.name == "round:1"  # as it was
    # What was to be told of it is told again.
    rounds, message = other.session.rounds, other.widget.learning.message
    assert "contradict" not in message.label.text()
    (one,) = rounds.all
    region = {"box": [0, 0, 4, 4], "label": 1, "predicted": 2, "n_pixels": 16, "is_learnt": True}
    place = {"item_id": 1, "index": [], "region": region}
    rounds.all = (replace(one, report=one.report | {"contradictions": [place]}),)
    told = learn_state(other.bench).message.text
    assert told.startswith("Round 1 was neither kept nor discarded. 1 stroke may contradict the others.")
    rounds.all = (one,)
    _, discard, _ = message.buttons
    other.click(discard)
    other.settle()
    QTest.qWait(50)
    assert other.session.storage.keeper.project.rounds == ()
    assert "neither" not in other.widget.learning.message.label.text()
    assert "round:1" not in [choice.name for choice in other.session.shelf.models]
    assert other.session.shelf.choice.name == "starter"
    other.session.cancel()


def test_a_later_round_is_given_the_model_that_the_first_began_with(
    teacher: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, engine = teacher, teacher.session.engine
    given, really_learn = [], engine.learn

    def watched(*arguments: Any) -> TrainReport:
        given.append(arguments[5])
        return really_learn(*arguments)

    monkeypatch.setattr(engine, "learn", watched)
    learn(user)
    assert user.do(lambda: user.click(user.widget.learning.keep)) == "save"
    user.settle()
    learn(user)
    assert given[0] is None
    assert given[1].source == user.session.shelf.get("starter").source
    assert given[1].classes == user.session.table.classes


def test_classes_are_renamed_between_rounds(teacher: User) -> None:
    """Each model knows a renamed class by a name of its own, and that of the first round may know none."""
    user = teacher
    learn(user)
    assert user.do(lambda: user.click(user.widget.learning.keep)) == "save"
    user.settle()
    person = user.session.table.names.index("person")
    user.session.classes.rename(FLAG, "banner")
    user.session.classes.rename(person, "human")
    asked = {name: user.session.request(user.session.shelf.get(name)) for name in ("round:1", "starter")}
    assert dict(asked["round:1"].continues) == {"banner": "flag", "human": "person"}
    assert dict(asked["starter"].continues) == {"human": "person"}
    teach(user, np.s_[100:250, 16:30])
    learn(user)
    assert user.session.lessons.report is not None
    # Side by side, both are asked for the classes as they are called now.
    assert user.do(lambda: user.click(user.widget.learning.compare)) == "compare"
    changes = user.bench.comparing.changes
    assert changes.where.mean() < 0.2  # the same person on both sides


def test_what_was_learnt_is_told_and_labels_say_whose_they_are(teacher: User) -> None:
    user, learning, correct = teacher, teacher.widget.learning, teacher.widget.correct

    def primary(button: Any) -> bool:
        return button.property("primary") == "true"

    n_labelled = user.session.numbers[user.bench.key].summary.n_labelled
    assert f"{n_labelled:,} px edited" in correct.note.toolTip()
    assert primary(learning.task.button)
    learn(user)
    assert user.line("classes") == ""
    painted = user.labels.copy()
    assert correct.note.toolTip() == f"{n_labelled:,} px learnt · nothing new"
    assert user.widget.start.message.label.text() == STILL_EARLIER
    assert primary(user.widget.start.task.button)
    assert user.do(lambda: user.click(learning.keep)) == "save"
    user.settle()
    np.testing.assert_array_equal(user.labels, painted)  # nothing changes by itself
    assert learning.message.label.text() == f"Kept as round 1. {STILL_EARLIER}"
    assert user.widget.start.message.label.text() == ""  # said once

    # Its button cures that, and then there is nothing to learn.
    assert user.do(lambda: user.click(learning.message.buttons[0])) == "segment"
    user.settle()
    assert learning.message.label.text() == "Kept as round 1."
    assert correct.note.toolTip() == f"{n_labelled:,} px learnt · nothing new"
    assert primary(correct.patch)
    assert not primary(learning.task.button)

    # More is told apart from what was learnt, and another model was taught nothing.
    teach(user, np.s_[100:250, 16:30])
    n_new = user.session.numbers[user.bench.key].summary.n_labelled - n_labelled
    assert n_new > 0
    assert correct.note.toolTip() == f"{n_labelled:,} px learnt · {n_new:,} px new"
    assert primary(learning.task.button)
    user.session.choose_model("starter")
    user.settle()
    assert "learnt" not in correct.note.toolTip()
    assert STILL_EARLIER in user.widget.start.message.label.text()
    user.session.choose_model("round:1")
    user.settle()
    assert correct.note.toolTip() == f"{n_labelled:,} px learnt · {n_new:,} px new"


def test_what_was_learnt_is_known_after_the_project_was_opened_again(
    teacher: User, make_napari_viewer: Any, tmp_path: Any
) -> None:
    user = teacher
    learn(user)
    assert user.do(lambda: user.click(user.widget.learning.keep)) == "save"
    user.settle()
    n_labelled = user.session.numbers[user.bench.key].summary.n_labelled
    teach(user, np.s_[100:250, 16:30])  # and this was not learnt
    n_new = user.session.numbers[user.bench.key].n_new
    assert n_new > 0
    other = opened_again(user, make_napari_viewer, tmp_path / "saved")
    assert other.widget.correct.note.toolTip() == f"{n_labelled:,} px learnt · {n_new:,} px new"
    other.session.cancel()


def test_clicking_through_the_classes_leaves_no_empty_layers(teacher: User) -> None:
    user = teacher
    names = [layer.name for layer in user.viewer.layers]
    for value in (3, 5, 7):
        user.bench.paint_with(value)
        user.settle()
        assert user.viewer.layers.selection.active.name == f"photo · {user.session.table.names[value]}"
    user.bench.paint_with(FLAG)
    user.settle()
    assert [layer.name for layer in user.viewer.layers] == names


def test_a_round_that_comes_back_knows_what_it_was_taught(
    teacher: User, make_napari_viewer: Any, tmp_path: Any
) -> None:
    user = teacher
    n_taught = []
    for number in range(2):
        teach(user, np.s_[100:250, 0 : 16 + 8 * number])
        n_taught.append(user.session.numbers[user.bench.key].summary.n_labelled)
        learn(user)
        assert user.do(lambda: user.click(user.widget.learning.keep)) == "save"
        user.settle()
    other = opened_again(user, make_napari_viewer, tmp_path / "saved")
    told = []
    for number in (1, 2):  # the project was opened with the second
        other.session.choose_model(f"round:{number}")
        other.settle()  # what it was taught is read,
        other.settle()  # and then counted
        told.append(other.widget.correct.note.toolTip())
    first, both = n_taught
    assert told == [f"{first:,} px learnt · {both - first:,} px new", f"{both:,} px learnt · nothing new"]

    # A class has another name: the models still call it as before, also when the project is opened again.
    other.session.classes.rename(FLAG, "banner")
    assert other.do(other.session.storage.begin) == "open"
    assert other.do(lambda: other.bench.projects.open(tmp_path / "saved")) == "open"
    other.settle()
    assert other.session.table.names[FLAG] == "banner"
    assert other.session.table.own_names == ()
    assert other.session.table.continues() == (("banner", "flag"),)
    other.session.cancel()


def test_a_model_that_knows_none_of_the_classes_segments_nothing(
    teacher: User, photograph: np.ndarray
) -> None:
    user, start = teacher, teacher.widget.start
    user.session.classes.begin(["flag"])
    user.settle()
    learn(user)
    assert user.do(lambda: user.click(user.widget.learning.keep)) == "save"
    user.settle()
    labels = user.labels.copy()
    user.session.choose_model("nuclei-fluorescence")
    user.settle()
    assert start.message.label.text() == "This model knows none of your classes."
    assert not start.task.button.isEnabled()
    assert [button.text() for button in start.message.buttons] == ["Round 1", "New project"]
    assert user.do(user.widget.segment) == "failed"
    np.testing.assert_array_equal(user.labels, labels)

    # Back to the round that knows them, or on to a project that has the classes of this model.
    user.session.choose_model("round:1")
    user.session.choose_model("nuclei-fluorescence")
    user.settle()
    assert user.do(lambda: user.click(start.message.buttons[0])) == "segment"
    assert user.session.shelf.choice.name == "round:1"
    user.session.choose_model("nuclei-fluorescence")
    user.settle()
    assert user.do(lambda: user.click(start.message.buttons[1])) == "open"
    user.settle()
    assert user.session.shelf.choice.name == "nuclei-fluorescence"
    assert user.session.table.names == ("background", "nucleus", "border")
    assert user.session.rounds.all == ()
    assert not user.widget.learning.rounds.isVisible()
    assert user.do(user.widget.segment) == "segment"


def test_a_new_project_after_a_round_begins_with_the_model_that_the_round_began_with(teacher: User) -> None:
    user = teacher
    learn(user)
    assert user.do(lambda: user.click(user.widget.learning.keep)) == "save"
    user.settle()
    assert user.session.shelf.choice.name == "round:1"
    assert user.do(user.widget.project.new_wanted.emit) == "open"
    user.settle()
    assert user.session.shelf.choice.name == "starter"
    assert user.session.table.names == user.session.shelf.choice.class_names
    assert [choice.name for choice in user.session.shelf.models if choice.name.startswith("round")] == []


def test_strokes_that_contradict_the_others_are_shown_where_they_are(
    teacher: User, photograph: np.ndarray
) -> None:
    user, learning = teacher, teacher.widget.learning
    labels = user.labels.copy()
    labels[160:174, 0:16] = 5  # across the flag, called a bottle
    user.bench.group.write(labels)
    user.settle()
    learn(user)
    (place, *others) = user.session.lessons.report.contradictions
    assert (place.region.label, place.region.predicted) == (5, FLAG)
    assert others == []
    assert learning.message.label.text().startswith("1 stroke contradicts the others.")
    other = user.viewer.add_image(photograph[::-1], name="another")
    user.settle()
    assert user.bench.image is other
    camera = user.viewer.scene.camera
    (show,) = learning.message.buttons
    assert show.text() == "Show"
    user.click(show)
    QTest.qWait(50)
    assert user.bench.image.name == "photo"
    assert user.bench.doubts.shown is place
    assert FRAME in user.viewer.scene.overlays
    y, x = camera.center[-2:]
    assert (abs(y - 166.5) < 1, x < 60) == (True, True)  # the square lies within the image
    said = learning.message.label.text()
    assert said.startswith("Stroke 1 of 1: painted bottle, and still flag")
    assert [button.text() for button in learning.message.buttons] == ["Back"]

    # Back, and shown again; who goes on working, leaves it.
    view = tuple(camera.center)
    user.click(learning.message.buttons[0])
    QTest.qWait(50)
    assert FRAME not in user.viewer.scene.overlays
    assert tuple(camera.center) == view  # before, it was of another image
    assert learning.message.label.text().startswith("1 stroke contradicts")
    user.click(learning.message.buttons[0])
    QTest.qWait(50)
    user.bench.patching.next()
    user.settle()
    assert user.bench.doubts.shown is None
    assert user.bench.patching.patch is not None
    assert FRAME in user.viewer.scene.overlays  # of the square
    user.bench.patching.leave()

    # Corrected, there is nothing more to be said of it; until that is undone.
    wrong = user.labels.copy()
    right = np.where(wrong == 5, FLAG, wrong)
    user.bench.group.write(right)
    user.settle()
    assert user.bench.doubts.places == ()
    assert "contradict" not in learning.message.label.text()
    user.bench.group.write(wrong)
    user.settle()
    assert user.bench.doubts.places == (place,)

    # Corrected while it is shown, the view stays until they go back.
    user.click(learning.message.buttons[0])
    QTest.qWait(50)
    user.bench.group.write(right)
    user.settle()
    QTest.qWait(50)
    assert learning.message.label.text() == "Corrected."
    assert FRAME in user.viewer.scene.overlays
    user.click(learning.message.buttons[-1])
    QTest.qWait(50)
    assert FRAME not in user.viewer.scene.overlays
    user.bench.group.write(wrong)
    user.settle()

    # Kept while it is shown; the report has the place.
    y0, x0, y1, x1 = place.region.box
    user.click(learning.message.buttons[0])
    QTest.qWait(50)
    assert user.bench.doubts.shown is place
    assert user.do(lambda: user.click(learning.keep)) == "save"
    user.settle()
    assert user.bench.doubts.shown is None
    assert user.line("learn") == "Kept as round 1."  # and not cleared with the frame
    (row,) = round_rows(user.session)
    fact = f"“photo”, rows {y0} to {y1 - 1}, columns {x0} to {x1 - 1}: painted bottle, still flag"
    assert any(fact in line for line in row.facts)


def test_a_round_that_was_cut_off_is_given_more_time_with_one_button(teacher: User) -> None:
    user, learning, session = teacher, teacher.widget.learning, teacher.session
    short = TrainConfig(seconds=1e-3, max_iterations=400, crf_iterations=0)
    assert user.do(lambda: user.widget.learn(short)) == "learn"
    user.settle()
    assert learning.result.label.text().startswith("Its time was over after ")
    (more,) = learning.result.buttons
    assert more.text() == "Learn for 1 min"
    user.click(more)
    assert session.busy.what == "learn"
    assert session.effort.seconds == 60
    user.wait(lambda: session.lessons.history)
    assert user.do(lambda: (session.cancel(), session.cancel())) == "cancelled"
    user.settle()
    assert session.shelf.choice.name == "starter"
    assert session.rounds.all == ()


def test_discarding_forgets_the_lesson(teacher: User) -> None:
    user = teacher
    learn(user)
    assert "nothing new" in user.widget.correct.note.toolTip()
    user.click(user.widget.learning.discard)
    user.settle()
    assert "learnt" not in user.widget.correct.note.toolTip()
    assert STILL_EARLIER not in user.widget.start.message.label.text()


def test_rolling_back_and_comparing(teacher: User, photograph: np.ndarray) -> None:
    user, learning = teacher, teacher.widget.learning
    learn(user)

    # Before it is kept: the model from before on the left, what was learnt on the right.
    layers = list(user.viewer.layers)
    shown = [layer.visible for layer in layers]
    camera = user.viewer.scene.camera
    view, selected = (tuple(camera.center), camera.zoom), set(user.viewer.layers.selection)
    hidden, labels = set(user.bench.group.hidden), user.labels.copy()
    assert user.do(lambda: user.click(learning.compare)) == "compare"
    user.settle()
    both = []
    for choice in (user.session.lessons.before, user.session.shelf.choice):
        segmenter = Segmenter(user.session.engine.model(user.session.request(choice)), "cpu")
        segmenter.set_image(photograph)
        both.append(np.array(segmenter.predict().labels))
    added = [layer for layer in user.viewer.layers if layer not in layers]
    names = [layer.name.split(" · ")[1] for layer in added]
    assert names == ["image", "labels", "changed"] * 2
    np.testing.assert_array_equal(added[4].data, both[0])  # the upper ones are on the left
    np.testing.assert_array_equal(added[1].data, both[1])
    where = both[0] != both[1]
    assert where.any()
    for outline in (added[2], added[5]):
        np.testing.assert_array_equal(outline.data, where)
        assert outline.contour > 0
    grid = user.viewer.canvas.grid
    assert grid.enabled
    places = [grid.position(user.viewer.layers.index(layer), user.viewer.layers) for layer in added]
    assert places == [(0, 1)] * 3 + [(0, 0)] * 3
    assert not any(layer.visible for layer in layers)
    assert set(user.viewer.layers.selection) == selected
    assert user.bench.image.name == "photo"
    assert user.bench.group.hidden == hidden
    np.testing.assert_array_equal(user.labels, labels)
    assert f"{np.count_nonzero(where):,} px differ" in user.line("learn")
    assert user.line("learn").startswith("Left: Starter. Right: What was just learnt.")

    # Back: everything is as it was.
    user.click(learning.message.buttons[0])
    QTest.qWait(50)
    assert list(user.viewer.layers) == layers
    assert [layer.visible for layer in layers] == shown
    assert not grid.enabled
    assert (tuple(camera.center), camera.zoom) == view
    assert user.bench.group.hidden == hidden

    assert user.do(lambda: user.click(learning.keep)) == "save"
    teach(user, np.s_[100:250, 16:30])
    learn(user)
    assert user.do(lambda: user.click(learning.keep)) == "save"
    user.settle()
    user.wait(lambda: any(text.endswith("in use") for text in entries(user)))
    first, second = (next(text for text in entries(user) if text.startswith(f"Round {n}")) for n in (1, 2))
    assert second.endswith("in use")
    _, compare, report = entries(user)[first].actions()
    assert user.do(compare.trigger) == "compare"
    assert user.bench.comparing.changes is not None
    assert user.line("learn").startswith("Left: Round 1. Right: Round 2.")
    assert user.do(user.widget.segment) == "segment"  # who works on looks at the work
    QTest.qWait(50)
    assert user.bench.comparing.changes is None
    assert all(layer.name.startswith("photo") for layer in user.viewer.layers)

    report.trigger()
    QTest.qWait(50)
    (window,) = user.widget.findChildren(QDialog)
    assert window.windowTitle() == first
    window.close()

    entries(user)[first].actions()[0].trigger()
    user.settle()
    project = user.session.storage.keeper.project
    assert project.current_round.number == 1
    assert [done.number for done in project.rounds] == [1, 2]
    assert user.widget.start.model.currentText() == "Round 1"
    assert user.line("learn") == "Round 1 is in use again; no round was lost."
    user.widget.start.model_chosen.emit("round:2")  # the list of models does the same
    user.settle()
    assert project.current_round.number == 2
    user.wait(lambda: any(text.startswith("Round 2") and text.endswith("in use") for text in entries(user)))


def test_after_a_cancel_a_person_chooses(teacher: User) -> None:
    user, learning, session = teacher, teacher.widget.learning, teacher.session
    long = TrainConfig(seconds=None, max_iterations=100_000, crf_iterations=0)
    before = session.shelf.choice

    def cancel() -> None:
        user.widget.learn(long)
        user.wait(lambda: len(session.lessons.history) > 3)
        user.click(learning.task.cancel)
        assert session.busy is None or session.busy.is_stopping

    # What was learnt so far is kept.
    assert user.do(cancel) == "learn"
    user.settle()
    report = session.lessons.report
    assert report.stopped_by == "cancelled"
    steps = report.history[-1].iteration
    assert 3 < steps < N_BESIDE
    when = "it had hardly begun" if steps / N_BESIDE < 0.05 else f"{100 * steps / N_BESIDE:.0f} % was done"
    assert f"Cancelled when {when}: keep" in learning.result.label.text()
    assert learning.decision.isVisible()
    assert user.do(lambda: user.click(learning.keep)) == "save"
    user.settle()
    project = session.storage.keeper.project
    assert project.current_round.number == 1
    assert (project.current_round.parent, project.current_round.started_from) == (0, before.name)
    assert "cancelled" in next(iter(entries(user)))

    # Or the model from before is.
    assert user.do(cancel) == "learn"
    user.settle()
    user.click(learning.discard)
    user.settle()
    assert session.shelf.choice.name == "round:1"
    assert [done.number for done in project.rounds] == [1]

    # And the model from before the first round can be had again.
    user.wait(lambda: "Before the first round" in [a.text() for a in learning.rounds.menu().actions()])
    back = learning.rounds.menu().actions()[-1]
    assert back.isEnabled()
    back.trigger()
    user.settle()
    assert session.shelf.choice is before
    assert project.current_round is None
    assert [done.number for done in project.rounds] == [1]
    assert user.line("learn").startswith("The model from before the first round is in use again")
    user.wait(lambda: not learning.rounds.menu().actions()[-1].isEnabled())


def test_what_came_of_a_round_is_told_in_words() -> None:
    def told(
        before: float | None,
        after: float | None,
        n_pixels: int,
        n_areas: int,
        *end: TrainStep,
        strokes: tuple[int, int] = (0, 0),
    ) -> str:
        scores = [LockedScore(("a", "b"), (None, value), (0, n_pixels)) for value in (before, after)]
        return describe_round(
            TrainReport(
                model=cast(Any, None), before=scores[0], after=scores[1], history=end,
                stopped_by="time" if end else "iterations",
                n_planes=1, n_training_pixels=9, n_locked_pixels=n_pixels, n_locked_areas=n_areas,
                crf_learnt=False, contradictions=(), notes=(), config=LESSON,
                strokes_known=strokes[0], strokes_asked=strokes[1],
            )
        )  # fmt: skip

    aside = "with labels of yours kept aside as a check: 2,310 px in 14 areas."
    assert told(0.01, 0.85, 2310, 14) == f"Better: 85 % overlap, 1 % before this round, {aside}"
    assert told(0.852, 0.8, 2310, 14) == f"Worse: 80 % overlap, 85 % before this round, {aside}"
    assert told(0.972, 0.974, 2310, 14) == f"As good as before this round: 97 % overlap {aside}"
    few = (
        "Learnt. Too few labels of yours are kept aside to tell how well (768 px in 1 area): look at Compare."
    )
    assert told(0.972, 0.974, 768, 1) == told(0.1, 1.0, 768, 1) == few
    assert told(0.1, 1.0, 768, 1, strokes=(4, 4)) == few
    recognised = "Of 11 areas you labelled, 9 are recognised from the others alone. Look at Compare."
    assert told(0.1, 1.0, 768, 1, strokes=(9, 11)) == few.replace(": look at Compare.", f". {recognised}")
    assert "all are recognised" in told(0.1, 1.0, 768, 1, strokes=(6, 6))
    assert told(None, 0.9, 9, 1).startswith("Too little was labelled to tell")
    barely = told(0.04, 0.09, 2310, 14, TrainStep(1, 120, 0.5, None, 19.0))
    assert barely == "Its time was over after 1 of 120 steps."
    assert told(0.04, 0.09, 2310, 14, TrainStep(100, 120, 0.5, None, 19.0)).startswith("Better")


def test_what_is_too_few_to_tell_is_not_plotted_either(teacher: User) -> None:
    learn(teacher)
    lessons, learning = teacher.session.lessons, teacher.widget.learning
    lessons.history = [TrainStep(1, 2, 0.9, 0.4, 0.1), TrainStep(2, 2, 0.5, 1.0, 0.2)]
    for n_areas, plotted in ((1, []), (99, [0.4, 1.0])):
        report = replace(lessons.report, notes=(), contradictions=())  # they would take its room
        lessons.report = replace(report, n_locked_areas=n_areas, n_locked_pixels=9999)
        teacher.bench.changed.emit()
        QTest.qWait(50)
        _, overlap = learning.plot._iou.getData()
        assert list(() if overlap is None else overlap) == plotted
        assert list(learning.plot._loss.getData()[1]) == [0.9, 0.5]


def test_what_differs_is_told_in_a_sentence() -> None:
    classes = class_table(list("abcd"))
    first = np.array([[0, 0, 1, 1, 2, 255]], np.uint8)
    second = np.array([[0, 1, 1, 3, 3, 2]], np.uint8)
    changes = compare_labels(first, second, 4)
    np.testing.assert_array_equal(changes.where, [[False, True, False, True, True, True]])
    assert (changes.gained, changes.lost) == ((0, 1, 1, 2), (1, 1, 1, 0))
    assert describe(changes, classes) == "4 px differ (66.7%): b +1 −1, c +1 −1 and 2 more classes."
    assert describe(compare_labels(first, first, 4), classes) == "No pixel differs."


def test_a_person_chooses_what_a_round_may_cost(teacher: User, monkeypatch: pytest.MonkeyPatch) -> None:
    user, asked = teacher, []
    learning = user.session.engine.learn

    def learn_little(request: Any, project: Any, config: TrainConfig, *rest: Any) -> Any:
        asked.append(config)
        return learning(request, project, config.model_copy(update={"max_iterations": 2}), *rest)

    monkeypatch.setattr(user.session.engine, "learn", learn_little)
    panel = user.widget.learning
    assert panel.effort.text() == "20 s ▾"
    panel.times[60.0].trigger()
    panel.thaw.trigger()
    user.wait(lambda: panel.effort.text() == "1 min + ▾")
    assert user.do(lambda: user.click(panel.task.button)) == "learn"
    (config,) = asked
    assert (config.seconds, config.thaw) == (60, True)
    assert config.max_iterations == 3 * TrainConfig().max_iterations
