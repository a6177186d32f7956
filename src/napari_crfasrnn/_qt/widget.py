"""The dock widget: the panels in the order of the work, around the workbench of the viewer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

from qtpy.QtCore import QEvent, QSize, Qt, QTimer, Signal
from qtpy.QtOpenGLWidgets import QOpenGLWidget
from qtpy.QtWidgets import (
    QFileDialog,
    QFrame,
    QInputDialog,
    QMainWindow,
    QMessageBox,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from napari_crfasrnn._qt import present
from napari_crfasrnn._qt.keys import HELP
from napari_crfasrnn._qt.names import from_a_line, in_a_line
from napari_crfasrnn._qt.panels import (
    ClassesPanel,
    CorrectPanel,
    LearnPanel,
    ProjectPanel,
    RoundReport,
    StartPanel,
    style_sheet,
    theme_of,
)
from napari_crfasrnn._qt.panels.look import GAP
from napari_crfasrnn._qt.present import COMPARE_ROUND, DISCARD_ROUND, KEEP_ROUND, LEARN_FOR
from napari_crfasrnn._qt.rounds import round_rows
from napari_crfasrnn._qt.state.shelf import LEARNT, PREFIX
from napari_crfasrnn._qt.state.tasks import sentence
from napari_crfasrnn._qt.state.telling import OWN_CLASSES, USE
from napari_crfasrnn._qt.workbench import Workbench

if TYPE_CHECKING:
    import napari

    from napari_crfasrnn._qt.state import Session
    from napari_crfasrnn.config import TrainConfig
    from napari_crfasrnn.project import LabelChoice

WIDTH, NARROWEST = 340, 300  # pixels
SUFFIX = ".safetensors"
MODEL_FILES = "*.safetensors *.caffemodel *.pth *.pt *.h5 *.hdf5 *.mat"


class SegmentationWidget(QWidget):  # type: ignore[misc]
    """Segment, correct, learn, and segment again.

    Parameters
    ----------
    viewer
        The viewer; widgets of the same viewer show the same work.
    """

    finished = Signal(str)
    """A task has ended: "segment", "refine", "learn", "compare", "save", "export", "open", "load", or none
    did: "cancelled", "failed"."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        self._docked = False
        super().__init__()
        self.viewer = viewer
        self.setObjectName("crfasrnn")
        self.bench: Workbench | None = Workbench.of(viewer)
        self.start, self.classes, self.correct = StartPanel(), ClassesPanel(), CorrectPanel()
        self.learning, self.project = LearnPanel(), ProjectPanel()
        self._lay_out()
        self._wire()
        self._theme_name = ""
        self._refresh()
        viewer.layers.events.removing.connect(self._enter_canvas)
        self.destroyed.connect(_Release(self))

    # --- for scripts --------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """The state behind the widget."""
        return self._bench.session

    def segment(self) -> None:
        """Segment the chosen image with the chosen model, as the button does."""
        self._bench.segment()

    def refine(self, view_only: bool = True) -> None:
        """Let the CRF snap labels to edges, on the screen or in the whole slice."""
        self._bench.refine(view_only)

    def learn(self, config: TrainConfig | None = None) -> None:
        """Teach the model what was corrected."""
        self._bench.learn(config)

    def cancel(self) -> None:
        """Stop what is going on."""
        self.session.cancel()

    # --- inside -------------------------------------------------------------------------------------

    @property
    def _bench(self) -> Workbench:
        if self.bench is None:
            raise RuntimeError("the widget was closed")
        return self.bench

    def _lay_out(self) -> None:
        column = QWidget()
        layout = QVBoxLayout(column)
        layout.setContentsMargins(GAP + 2, GAP, GAP + 2, GAP)
        layout.setSpacing(GAP + 2)
        for panel in (self.start, self.classes, self.correct, self.learning, self.project):
            layout.addWidget(panel)
        layout.setStretchFactor(self.classes, 1)
        layout.addStretch(0)
        scroll = self.scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setWidget(column)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(scroll)
        self.setMinimumWidth(NARROWEST)
        keys = "".join(f"<tr><td><b>{key}</b>&nbsp;</td><td>{what}</td></tr>" for key, what in HELP)
        self.classes.note.show_text("keys ?", f"Keys, with the canvas in focus:<table>{keys}</table>")

    def sizeHint(self) -> QSize:  # noqa: N802 - Qt's
        """Return the width that the panels are drawn for."""
        return QSize(WIDTH, 620)

    def event(self, event: QEvent) -> bool:
        """Go when napari has taken the widget out of its dock, which is what closing the dock does."""
        if event.type() == QEvent.Type.ParentChange:
            if self._docked and self.parent() is None:
                QTimer.singleShot(0, self._go_if_orphaned)
            self._docked = self.parent() is not None
        return bool(super().event(event))

    def _go_if_orphaned(self) -> None:
        if self.parent() is None and not self.isVisible():
            self.deleteLater()

    def _enter_canvas(self, event: Any = None) -> None:
        """Make the canvas's OpenGL context the current one, before a layer goes.

        napari deletes what drew the layer at once, in whichever context is current, and that may be Qt's own,
        which puts windows together. Mesa then no longer knows which shader is bound in the canvas, so drawing
        another layer ends the process.
        """
        window = self.window()
        while (parent := window.parentWidget()) is not None:  # of a dock that floats
            window = parent.window()
        if isinstance(window, QMainWindow):  # its middle is napari's; docks may have canvases of their own
            for canvas in window.centralWidget().findChildren(QOpenGLWidget):
                canvas.makeCurrent()

    def _wire(self) -> None:
        bench = self._bench
        bench.changed.connect(self._refresh)
        bench.session.finished.connect(self._on_finished)
        start, classes, correct = self.start, self.classes, self.correct
        start.image_chosen.connect(bench.choose_image)
        start.model_chosen.connect(bench.session.choose_model)
        start.model_file_wanted.connect(self._ask_model)
        start.segment_clicked.connect(self.segment)
        start.cancelled.connect(self.cancel)
        start.all_slices_chosen.connect(self._choose_slices)
        start.channels_chosen.connect(bench.set_channels)
        start.sample_wanted.connect(bench.open_sample)
        start.drawing_toggled.connect(lambda on: bench.boxes.draw(on, classes.table.selected_value()))
        start.box_layer_chosen.connect(bench.boxes.choose)
        start.score_chosen.connect(bench.boxes.say_score)
        classes.table.paint_wanted.connect(bench.paint_with)
        classes.table.eye_clicked.connect(bench.labelling.set_visible)
        classes.table.renamed.connect(self._rename)
        classes.table.recolored.connect(lambda v, r, g, b: bench.session.classes.recolor(v, (r, g, b)))
        classes.add_wanted.connect(self._add)
        classes.delete_wanted.connect(self._delete)
        classes.own_wanted.connect(self._ask_classes)
        classes.per_class_chosen.connect(bench.labelling.set_per_class)
        correct.patch_wanted.connect(bench.patching.next)
        correct.patch_approved.connect(bench.patching.approve)
        correct.patches_left.connect(bench.patching.leave)
        correct.live_toggled.connect(bench.set_live)
        correct.refine_wanted.connect(bench.refine)
        correct.accept_clicked.connect(bench.accept)
        correct.uncertainty_toggled.connect(bench.show_uncertainty)
        correct.before_toggled.connect(bench.show_before)
        self.learning.learn_clicked.connect(lambda: self.learn())
        self.learning.cancelled.connect(self.cancel)
        self.learning.kept.connect(bench.session.lessons.keep)
        self.learning.discarded.connect(bench.session.lessons.discard)
        self.learning.compare_clicked.connect(self._compare_learnt)
        self.learning.round_wanted.connect(bench.session.rounds.roll_back)
        self.learning.round_compared.connect(self._compare_round)
        self.learning.seconds_wanted.connect(lambda seconds: bench.set_effort(seconds=seconds))
        self.learning.thaw_wanted.connect(lambda thaw: bench.set_effort(thaw=thaw))
        self.learning.report_wanted.connect(self._show_round)
        self.project.new_wanted.connect(bench.session.storage.begin)
        self.project.open_wanted.connect(self._open_project)
        self.project.save_as_wanted.connect(self._ask_save_as)
        self.project.save_model_wanted.connect(self._ask_save_model)
        self.project.export_wanted.connect(self._ask_export)
        self.project.cancelled.connect(self.cancel)
        self.project.item_wanted.connect(bench.projects.open_item)
        for panel in (start, classes, correct, self.learning, self.project):
            panel.cured.connect(self._cure)

    def _refresh(self) -> None:
        if self.bench is None:
            return
        theme = theme_of(self.viewer.theme)
        if self.viewer.theme != self._theme_name:
            self._theme_name = self.viewer.theme
            self.setStyleSheet(style_sheet(theme))
        bench = self.bench
        self.start.show_state(present.start_state(bench))
        self.classes.show_state(present.classes_state(bench), theme)
        self.correct.show_state(present.correct_state(bench))
        self.learning.show_state(present.learn_state(bench), theme)
        self.learning.show_history(present.history(bench))
        self.project.show_state(present.project_state(bench))

    def _on_finished(self, what: str) -> None:
        if self.bench is not None:
            self.bench.labelling.when_grown(self.bench.key, lambda: self._tell_finished(what))

    def _tell_finished(self, what: str) -> None:
        self._refresh()
        self.finished.emit(what)

    def _choose_slices(self, all_slices: bool) -> None:
        self._bench.all_slices = all_slices

    def _add(self, name: str) -> None:
        self._try(lambda: self.session.classes.add(name))

    def _rename(self, value: int, name: str) -> None:
        self._try(lambda: self.session.classes.rename(value, name))

    def _delete(self, value: int) -> None:
        name = self.session.table.classes[value].name
        closed = self._in_closed_images()
        if closed or self.session.classes.is_used(value):
            answer = QMessageBox.question(
                self,
                "Delete a class",
                f"Pixels labelled “{name}” become unlabelled{closed}, and this cannot be undone. Delete it?",
            )
            if answer != QMessageBox.StandardButton.Yes:
                return
        self._try(lambda: self.session.classes.delete(value))

    def _ask_classes(self) -> None:
        names, given = QInputDialog.getText(
            self,
            "Classes of your own",
            "Their names, with commas between; the background is there already:",
            text=in_a_line(self.session.table.own_names),
        )
        if not given or not names.strip():
            return
        closed = self._in_closed_images()
        if closed or any(numbers.summary.n_labelled for numbers in self.session.numbers.values()):
            answer = QMessageBox.question(
                self,
                "Classes of your own",
                f"What you labelled as a class that is not among these becomes unlabelled{closed}, and this "
                "cannot be undone. Begin with these?",
            )
            if answer != QMessageBox.StandardButton.Yes:
                return
        self._try(lambda: self.session.classes.begin(from_a_line(names)))

    def _in_closed_images(self) -> str:
        """Return words for what else a change of the class table reaches, if there is any."""
        n_closed = len(self._bench.projects.closed_items)
        if n_closed == 0:
            return ""
        images = "the image" if n_closed == 1 else f"the {n_closed} images"
        return f", also in {images} of the project that {'is' if n_closed == 1 else 'are'} not open"

    def _try(self, change: Any) -> None:
        self.session.tasks.say("classes", "")
        try:
            change()
        except ValueError as error:
            self.session.tasks.say("classes", f"{sentence(error)}.", "problem")

    def _ask_model(self) -> None:
        kinds = f"Models ({MODEL_FILES});;All files (*)"
        path, _ = QFileDialog.getOpenFileName(self, "Open a model", "", kinds)
        if path:
            self.session.shelf.open(Path(path))

    def _ask_save_model(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Save the model", f"model{SUFFIX}", f"Models (*{SUFFIX})")
        if path:
            self.session.save_model(Path(path).with_suffix(SUFFIX))

    def _ask_save_as(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Save the project as a folder", "project")
        if path:
            self.session.storage.save_as(Path(path))

    def _ask_export(self, kind: str) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Export a training set as a folder", "training set")
        if path:
            labels: LabelChoice = "settled" if kind == "settled" else "all"
            self.session.storage.export(Path(path), labels, "coco" if kind == "coco" else "plain")

    def _open_project(self, path: str) -> None:
        path = path or QFileDialog.getExistingDirectory(self, "Open a project: choose its folder")
        if path:
            self._bench.projects.open(Path(path))

    def _cure(self, cure: str) -> None:
        """Do what a message offers; of some, what it is about follows the name."""
        bench, session = self._bench, self.session
        simple: dict[str, Callable[[], object]] = {
            "bring-back": bench.bring_back,
            "end-comparing": bench.comparing.end,
            "next-doubt": bench.doubts.next,
            "end-doubts": bench.doubts.end,
            "segment": self.segment,
            "new-project": session.storage.begin,
            "open-model": self._ask_model,
            "download": session.shelf.download,
            "import-report": self._show_report,
            OWN_CLASSES: self._ask_classes,
        }
        about: dict[str, Callable[[str], object]] = {
            LEARN_FOR: lambda seconds: self._learn_anew(float(seconds)),
            KEEP_ROUND: lambda number: session.rounds.keep(int(number)),
            DISCARD_ROUND: lambda number: session.rounds.discard(int(number)),
            COMPARE_ROUND: lambda number: self._compare_undecided(int(number)),
            USE: self._segment_with,
        }
        what, colon, of = cure.partition(":")
        if colon:
            about[what + colon](of)
        else:
            simple[cure]()

    def _segment_with(self, model: str) -> None:
        self.session.choose_model(model)
        self.segment()

    def _learn_anew(self, seconds: float) -> None:
        """Drop what was just learnt, and learn with another time limit from now on."""
        self.session.lessons.discard()
        self._bench.set_effort(seconds=seconds)
        self.learn()

    def _compare_learnt(self) -> None:
        before = self.session.lessons.before
        if before is not None:
            self._bench.comparing.start(before.name, LEARNT)

    def _compare_undecided(self, number: int) -> None:
        self._bench.comparing.start(self.session.rounds.model_before(number), f"{PREFIX}{number}")

    def _compare_round(self, number: int) -> None:
        in_use = self.session.shelf.choice
        if in_use is not None:
            self._bench.comparing.start(f"{PREFIX}{number}", in_use.name)

    def _show_round(self, number: int) -> None:
        for one in round_rows(self.session):
            if one.number == number:
                RoundReport(one, theme_of(self.viewer.theme), self).show()

    def _show_report(self) -> None:
        """Show what became of each tensor of an imported file, beside the work and not in its way."""
        report = self.session.shelf.report
        if report is None:
            return
        box = QMessageBox(self)
        box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        box.setWindowModality(Qt.WindowModality.NonModal)
        box.setWindowTitle("Imported model")
        lines = report.lines()
        box.setText(lines[0])
        box.setInformativeText("\n".join([*report.warnings, *lines[-4:]]))
        box.setDetailedText("\n".join(lines))
        box.show()


class _Release:
    """Lets go of the workbench when Qt has deleted a widget; a bound method would keep it alive."""

    def __init__(self, widget: SegmentationWidget) -> None:
        self._bench = widget.bench
        self._widget = ref(widget)

    def __call__(self) -> None:
        widget, (bench, self._bench) = self._widget(), (self._bench, None)
        if widget is not None:
            widget.bench = None  # nothing is shown any more
            widget.viewer.layers.events.removing.disconnect(widget._enter_canvas)
        if bench is not None:
            bench.release()
