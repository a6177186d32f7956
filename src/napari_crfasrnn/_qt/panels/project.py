"""The project on the disk."""

from __future__ import annotations

from functools import partial

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QMenu, QStackedLayout, QToolButton, QWidget

from napari_crfasrnn._qt.panels.parts import MessageLine, ProgressRow, Section, row, show_action, tool_button
from napari_crfasrnn._qt.panels.state import Action, Message, ProjectState

TRAINING_SETS = {
    "all": (
        "Training set: all labels…",
        "Images and masks in a folder, for train and other programs; also what a model guessed",
    ),
    "settled": (
        "Training set: what I settled…",
        "The same with what you painted, corrected or verified alone; everything else is unlabelled",
    ),
    "coco": (
        "COCO: all labels…",
        "Images, and COCO's JSON with each connected region of a class; also what a model guessed",
    ),
}
"""What may be exported: how the menu calls it, and what more there is to say."""


class ProjectPanel(Section):
    """The project on the disk."""

    new_wanted = Signal()
    open_wanted = Signal(str)  # a path, or "" to choose one
    save_as_wanted = Signal()
    save_model_wanted = Signal()
    export_wanted = Signal(str)  # a key of `TRAINING_SETS`
    cancelled = Signal()
    item_wanted = Signal(int)
    cured = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Project", parent)
        self.open = tool_button("Open…", "Open a project, or begin a new one")
        self.open.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.open.setMenu(QMenu(self.open))
        self.open.menu().setToolTipsVisible(True)
        self.save_as = tool_button("Save as…", "Save the project, with its images and labels, in a folder")
        self.save_as.clicked.connect(self.save_as_wanted)
        self.export = tool_button("Export ▾", "Save a training set in a folder, or the model in a file")
        self._fill_export()
        self.images = tool_button("Images", "Open another image of the project")
        self.images.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.images.setMenu(QMenu(self.images))
        self.message = MessageLine()
        self.message.cured.connect(self.cured)
        self.progress = ProgressRow("Progress of opening or exporting a project")
        self.progress.cancelled.connect(self.cancelled)
        for tool in (self.open, self.save_as, self.export, self.images):  # they fill 300 pixels
            tool.setObjectName("slim")
        tools = QWidget()
        in_row = row(self.open, self.save_as, self.export, self.images)
        in_row.addStretch(1)
        tools.setLayout(in_row)
        self._stack = QStackedLayout()
        self._stack.addWidget(tools)
        self._stack.addWidget(self.progress)
        self.content.addLayout(self._stack)
        self.content.addWidget(self.message)
        self._shown: ProjectState | None = None

    def show_state(self, state: ProjectState) -> None:
        """Draw."""
        self.set_title(state.title)
        show_action(self.open, state.open)
        show_action(self.save_as, state.save)
        self._show_export(state.export, state.save_model)
        self.note.show_text(state.summary)
        self._stack.setCurrentIndex(0 if state.progress is None else 1)
        if state.progress is not None:
            self.progress.show_progress(state.progress)
        self.message.show_message(Message(state.progress.text) if state.progress else state.message)
        if self._shown is None or (self._shown.new, self._shown.recents) != (state.new, state.recents):
            menu = self.open.menu()
            menu.clear()
            new = menu.addAction("New project", self.new_wanted.emit)
            new.setEnabled(state.new.enabled)
            new.setToolTip(
                state.new.why_not
                or "Begin with the images that are open; this project is kept, and listed here"
            )
            menu.addAction("Choose a folder…", lambda: self.open_wanted.emit(""))
            if state.recents:
                menu.addSection("Earlier work")
            for path, text in state.recents:
                menu.addAction(text, lambda path=path: self.open_wanted.emit(path))
        if self._shown is None or self._shown.left != state.left:
            menu = self.images.menu()
            menu.clear()
            for number, name in state.left:
                menu.addAction(name, lambda number=number: self.item_wanted.emit(number))
            self.images.setVisible(bool(state.left))
        self._shown = state

    def _fill_export(self) -> None:
        self.export.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        menu = QMenu(self.export)
        menu.setToolTipsVisible(True)
        self.to_export = {
            kind: menu.addAction(text, partial(self.export_wanted.emit, kind))
            for kind, (text, _) in TRAINING_SETS.items()
        }
        menu.addSeparator()
        self.save_model = menu.addAction("Model…", self.save_model_wanted.emit)
        self.export.setMenu(menu)

    def _show_export(self, training_set: Action, model: Action) -> None:
        for kind, (_, tip) in TRAINING_SETS.items():
            self.to_export[kind].setEnabled(training_set.enabled)
            self.to_export[kind].setToolTip(training_set.why_not or tip)
        self.save_model.setEnabled(model.enabled)
        self.save_model.setToolTip(model.why_not or "The model in a file, with its classes")
        show_action(self.export, model if model.enabled else training_set)
