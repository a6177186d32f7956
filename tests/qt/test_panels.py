"""How the widget looks and is reached: names for everybody, room, contrast, keys, menus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QAbstractButton, QComboBox, QTableView

import napari_crfasrnn
from napari_crfasrnn._qt.names import from_a_line, in_a_line
from napari_crfasrnn._qt.panels import (
    ClassesPanel,
    CorrectPanel,
    LearnPanel,
    ProjectPanel,
    StartPanel,
    theme_of,
)
from napari_crfasrnn._qt.panels.state import (
    Action,
    ClassesState,
    ClassRow,
    CorrectState,
    Cure,
    LearnState,
    Message,
    Progress,
    ProjectState,
    StartState,
)
from napari_crfasrnn.config import TrainConfig

MANIFEST = Path(napari_crfasrnn.__file__).parent / "napari.yaml"


def test_the_manifest_is_valid_and_leads_to_things_that_exist() -> None:
    import npe2

    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    assert set(manifest.categories) == {"Annotation", "Segmentation"}
    commands = {command.id: command for command in manifest.contributions.commands}
    (item,) = manifest.contributions.menus["napari/layers/segment"]
    assert item.command == manifest.contributions.widgets[0].command
    for sample in manifest.contributions.sample_data:
        ((data, arguments, kind),) = _call(commands[sample.command].python_name)
        assert kind == "image"
        assert data.ndim in (2, 3)
        assert arguments["name"]


def _call(python_name: str):
    from importlib import import_module

    module, name = python_name.split(":")
    return getattr(import_module(module), name)()


def test_every_control_says_what_it_is(user) -> None:
    for kind in (QAbstractButton, QComboBox, QTableView):
        for control in user.widget.findChildren(kind):
            if control.objectName().startswith("qt_") or control.parent().objectName().startswith("qt_"):
                continue
            if kind is QAbstractButton and isinstance(control.parent(), QTableView):
                continue  # the corner of a table
            if isinstance(control, QAbstractButton) and control.isHidden() and not control.text():
                continue  # there is nothing to cure
            assert control.accessibleName() or control.text(), control
            if kind is not QTableView and control.accessibleName() != "":
                assert control.toolTip(), control.accessibleName()


def test_a_button_that_cannot_be_pressed_says_why(qapp) -> None:
    panel = CorrectPanel()
    panel.show_state(CorrectState(refine=Action(False, "Segment the image first.")))
    assert panel.refine_view.toolTip() == "Segment the image first."
    panel.show_state(CorrectState())
    assert "(R)" in panel.refine_view.toolTip()
    project, nothing = ProjectPanel(), Action(False, "There is nothing to export yet.")
    project.show_state(ProjectState(export=nothing))
    assert project.export.isEnabled()  # a model is there
    assert {action.toolTip() for action in project.to_export.values()} == {nothing.why_not}
    project.show_state(ProjectState(export=nothing, save_model=Action(False, "Choose a model first.")))
    assert not project.export.isEnabled()
    assert project.export.toolTip() == nothing.why_not


def test_panels_tell_what_was_done_and_decide_nothing(qapp, qtbot) -> None:
    start, learn, project = StartPanel(), LearnPanel(), ProjectPanel()
    state = StartState(
        images=(("a", "first"), ("b", "second")),
        image="b",
        models=(("m", "Model", ""), ("n", "Broken", "cut")),
        model="m",
        slice_text="slice 1 of 3",
        message=Message("Something", "problem", (Cure("do-it", "Do it"),)),
    )
    start.show_state(state)
    assert start.image.currentData() == "b"
    assert not start.model.model().item(1).isEnabled()
    assert start.message.label.property("tone") == "problem"
    with qtbot.waitSignal(start.cured) as cured:
        start.message.buttons[0].click()
    assert cured.args == ["do-it"]
    with qtbot.waitSignal(start.image_chosen) as chosen:
        start.image.activated.emit(0)
    assert chosen.args == ["a"]
    start.show_state(
        StartState(message=Message("Or", "quiet", (Cure("a", "A"), Cure("b", "B", "the other"))))
    )
    assert [button.toolTip() for button in start.message.buttons] == ["A", "the other"]
    with qtbot.waitSignal(start.cured) as cured:
        start.message.buttons[1].click()
    assert cured.args == ["b"]
    start.show_state(StartState(loading=True))
    assert start.model.placeholderText() == "Looking for models…"
    start.show_state(StartState(progress=Progress("Segmenting…", 2, 4)))
    assert start.task.bar.value() == 2
    with qtbot.waitSignal(start.cancelled):
        start.task.cancel.click()

    learn.show_state(LearnState(result=Message("IoU 0.5 → 0.7")), theme_of("dark"))
    with qtbot.waitSignal(learn.kept):
        learn.keep.click()
    with qtbot.waitSignal(learn.discarded):
        learn.discard.click()
    project.show_state(ProjectState(recents=(("/p", "photo"),), left=((3, "third"),)))
    with qtbot.waitSignal(project.open_wanted) as opened:
        project.open.menu().actions()[-1].trigger()
    assert opened.args == ["/p"]
    with qtbot.waitSignal(project.export_wanted) as exported:
        project.export.menu().actions()[1].trigger()
    assert exported.args == ["settled"]
    with qtbot.waitSignal(project.save_model_wanted):
        project.export.menu().actions()[-1].trigger()
    with qtbot.waitSignal(project.new_wanted):
        project.open.menu().actions()[0].trigger()
    with qtbot.waitSignal(project.item_wanted) as item:
        project.images.menu().actions()[0].trigger()
    assert item.args == [3]


def test_the_class_table_paints_hides_and_renames(qapp, qtbot) -> None:
    panel = ClassesPanel()
    qtbot.addWidget(panel)
    rows = tuple(
        ClassRow(value, name, (10 * value, 0, 0), value, share, True, share > 0)
        for value, (name, share) in enumerate([("background", 0.9), ("cell", 0.1), ("debris", 0.0)])
    )
    panel.show_state(ClassesState(rows=rows, painting=1), theme_of("dark"))
    panel.show()
    table = panel.table
    assert table.selected_value() == 1
    model = table.model()
    texts = [[model.index(row, column).data() for column in range(2, 5)] for row in range(3)]
    assert texts == [["0", "background", "90.0 %"], ["1", "cell", "10.0 %"], ["2", "debris", None]]

    def spot(row: int, column: int):
        return table.visualRect(model.index(row, column)).center()

    with qtbot.waitSignal(table.paint_wanted) as painted:
        QTest.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, pos=spot(2, 3))
    assert painted.args == [2]
    with qtbot.waitSignal(table.eye_clicked) as eye:
        QTest.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, pos=spot(1, 0))
    assert eye.args == [1, False]
    with qtbot.waitSignal(table.renamed) as renamed:
        assert model.setData(model.index(1, 3), " nucleus ", Qt.ItemDataRole.EditRole)
    assert renamed.args == [1, "nucleus"]
    assert not model.setData(model.index(1, 3), "  ", Qt.ItemDataRole.EditRole)
    with qtbot.waitSignal(panel.delete_wanted) as deleted:
        panel.delete.click()
    assert deleted.args == [1]


@pytest.mark.parametrize("name", ["dark", "light"])
def test_texts_stand_out_from_their_background(name) -> None:
    """WCAG 2.1 asks for a contrast of 4.5 for text, and 3 for what is large or bold."""
    theme = theme_of(name)
    for background in (theme.background, theme.foreground):
        for text in (theme.text, theme.quiet, theme.problem, theme.good):
            assert contrast(text, background) >= 4.5, (text, background)


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours (WCAG 2.1, relative luminance)."""

    def luminance(color: str) -> float:
        parts = np.array(QColor(color).getRgbF()[:3])
        linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_it_fits_a_small_laptop(user, photograph) -> None:
    """340 pixels wide, usable at 300, and no scrolling at 1366 by 768, also while a round is judged."""
    window = user.viewer.window._qt_window
    window.resize(1366, 740)
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    user.bench.paint_with(3)
    user.drag((30, 30), (60, 60))
    user.settle()
    lesson = TrainConfig(seconds=None, max_iterations=3, crf_iterations=0)
    assert user.do(lambda: user.widget.learn(lesson)) == "learn"
    user.wait(user.widget.learning.rounds.isVisible)  # and takes room, too
    QTest.qWait(100)
    assert user.widget.width() == 340
    assert user.widget.minimumWidth() == 300
    column = user.widget.scroll.widget()
    assert column.minimumSizeHint().width() <= 300
    assert user.widget.scroll.verticalScrollBar().maximum() == 0


def test_names_are_whole_or_end_in_an_ellipsis(user, photograph) -> None:
    user.viewer.window._qt_window.resize(1366, 740)
    QTest.qWait(50)
    title = user.dock.titleBarWidget().title
    assert title.text() == "Segmentation (napari-crfasrnn)"
    assert title.fontMetrics().horizontalAdvance(title.text()) <= title.width()

    combo, long = user.widget.start.model, "Electron micrographs of nervous tissue: membranes, synapses, glia"
    drawn = []
    for name in (long, f"{long[:60]}ITES"):
        user.widget.start.show_state(StartState(models=(("m", name, ""),), model="m"))
        drawn.append(combo.grab().toImage())
    assert combo.toolTip() == name
    assert drawn[0] == drawn[1]  # what differs is behind the ellipsis
    user.widget.start.show_state(StartState(models=(("m", f"{long[:12]}!{long[13:]}", ""),), model="m"))
    assert combo.grab().toImage() != drawn[0]
    combo.showPopup()
    assert combo.view().width() >= combo.fontMetrics().horizontalAdvance(combo.currentText())
    combo.hidePopup()

    project, column = user.widget.project, user.widget.scroll.widget()
    project.show_state(ProjectState(left=((3, "third"),)))
    assert project.images.isVisible()
    assert column.minimumSizeHint().width() <= 300  # all buttons are in the row
    project.show_state(ProjectState(title=f"Project: {long}", summary="12 images, saved as you go"))
    QTest.qWait(50)
    assert column.minimumSizeHint().width() <= 300
    assert column.width() <= user.widget.width()
    assert project.title.text().startswith("Project: Electron")
    assert project.title.text().endswith("…")
    assert project.title.toolTip() == f"Project: {long}"
    for panel in (user.widget.classes, user.widget.correct, user.widget.learning):
        assert not panel.title.text().endswith("…")


def test_keys_of_the_canvas(user, photograph) -> None:
    image = user.viewer.add_image(photograph, name="photo")
    canvas = user.viewer.window._qt_viewer.canvas.native

    def press(key: Qt.Key, *modifiers: Qt.KeyboardModifier) -> None:
        QTest.keyClick(canvas, key, modifiers[0] if modifiers else Qt.KeyboardModifier.NoModifier)

    user.viewer.layers.selection.active = image
    assert user.do(lambda: press(Qt.Key.Key_S)) == "segment"
    user.settle()
    press(Qt.Key.Key_U)
    assert user.viewer.layers["photo · uncertainty"].visible
    press(Qt.Key.Key_U)
    assert not user.viewer.layers["photo · uncertainty"].visible
    shift = Qt.KeyboardModifier.ShiftModifier
    QTest.keyPress(canvas, Qt.Key.Key_B, shift)
    assert user.viewer.layers["photo · before CRF"].visible
    QTest.keyRelease(canvas, Qt.Key.Key_B, shift)
    assert not user.viewer.layers["photo · before CRF"].visible

    user.bench.paint_with(15)
    person = user.viewer.layers.selection.active
    press(Qt.Key.Key_C)
    assert person.contour > 0
    press(Qt.Key.Key_C)
    assert person.contour == 0
    press(Qt.Key.Key_E)  # napari's own keys still work
    assert person.mode == "erase"
    press(Qt.Key.Key_1)
    assert (user.viewer.layers.selection.active, person.mode) == (person, "paint")
    press(Qt.Key.Key_G)
    assert person.mode == "polygon"
    press(Qt.Key.Key_X, shift)
    assert user.viewer.layers.selection.active.selected_label == 255
    user.viewer.layers.selection.active = image
    press(Qt.Key.Key_A)
    assert user.bench.work.verified.all()
    press(Qt.Key.Key_A)
    assert not user.bench.work.verified.any()

    before = user.labels.copy()
    assert user.do(lambda: press(Qt.Key.Key_R)) == "refine"
    press(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)  # with the image selected
    np.testing.assert_array_equal(user.labels, before)


def test_no_painting_with_what_is_no_class(user, photograph) -> None:
    user.viewer.add_image(photograph, name="photo")
    assert user.do(user.widget.segment) == "segment"
    user.bench.paint_with(15)
    layer = user.viewer.layers.selection.active
    layer.selected_label = 77
    assert layer.selected_label == 15
    assert "77" in user.line("classes")
    layer.selected_label = 255
    assert layer.selected_label == 255


def test_both_themes_and_folding(user) -> None:
    for theme in ("light", "dark"):
        user.viewer.theme = theme
        QTest.qWait(30)
        assert theme_of(theme).accent in user.widget.styleSheet()
    user.widget.correct.set_open(False)
    assert not user.widget.correct.refine_view.isVisible()
    user.widget.correct.set_open(True)
    assert user.widget.correct.refine_view.isVisible()


def test_the_samples_are_a_click_away(user) -> None:
    assert user.widget.start.empty.isVisible()
    button = user.widget.start.empty.findChildren(QAbstractButton)[1]
    user.click(button)
    QTest.qWait(50)
    assert [layer.name for layer in user.viewer.layers] == ["cell"]
    assert not user.widget.start.empty.isVisible()
    assert user.widget.start.image.currentText() == "cell"
    user.wait(lambda: user.session.shelf.choice is not None)
    assert user.session.shelf.choice.name == "nuclei-fluorescence"


def test_no_two_buttons_look_alike_and_each_has_a_name(user) -> None:
    for width in (300, 340):
        user.dock.setFloating(True)
        user.widget.resize(width, 700)
        buttons = [b for b in user.widget.findChildren(QAbstractButton) if b.text() and b.isVisible()]
        texts = [button.text() for button in buttons]
        for button in buttons:
            assert button.accessibleName()
            assert button.toolTip()
            assert button.width() >= button.minimumSizeHint().width()  # what is on it is to be read
        assert sorted(text for text in texts if texts.count(text) > 1) == []


@pytest.mark.parametrize(
    "names",
    [[], ["cell"], ["cell", "axon, myelinated"], ['5" pipe', "a"], ['"', ",", '","'], ["it's", "Zelle ä"]],
)
def test_names_in_a_line_are_read_as_they_were(names: list[str]) -> None:
    assert from_a_line(in_a_line(names)) == names


def test_a_quotation_mark_without_a_partner_is_refused() -> None:
    assert from_a_line('cell, "axon, myelinated"') == ["cell", "axon, myelinated"]
    with pytest.raises(ValueError, match="quotation marks in pairs"):
        from_a_line('cell, "axon')
