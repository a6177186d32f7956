"""The project on the disk."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QMenu, QToolButton, QWidget

from napari_crfasrnn._qt.panels.parts import MessageLine, Section, row, show_action, tool_button
from napari_crfasrnn._qt.panels.state import ProjectState


class ProjectPanel(Section):
    """The project on the disk."""

    new_wanted = Signal()
    open_wanted = Signal(str)  # a path, or "" to choose one
    save_as_wanted = Signal()
    save_model_wanted = Signal()
    item_wanted = Signal(int)
    cured = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Project", parent)
        self.open = tool_button("Open…", "Open a project, or begin a new one")
        self.open.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.open.setMenu(QMenu(self.open))
        self.open.menu().setToolTipsVisible(True)
        self.save_as = tool_button("Save as…", "Save the project, with its images and labels, in a folder")
        self.save_model = tool_button("Save model…", "Save the model in a file")
        self.save_as.clicked.connect(self.save_as_wanted)
        self.save_model.clicked.connect(self.save_model_wanted)
        self.images = tool_button("Images", "Open another image of the project")
        self.images.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.images.setMenu(QMenu(self.images))
        self.message = MessageLine()
        self.message.cured.connect(self.cured)
        tools = row(self.open, self.save_as, self.save_model, self.images)
        tools.addStretch(1)
        self.content.addLayout(tools)
        self.content.addWidget(self.message)
        self._shown: ProjectState | None = None

    def show_state(self, state: ProjectState) -> None:
        """Draw."""
        self.set_title(state.title)
        for widget, action in (
            (self.open, state.open), (self.save_as, state.save), (self.save_model, state.save_model),
        ):  # fmt: skip
            show_action(widget, action)
        self.note.show_text(state.summary)
        self.message.show_message(state.message)
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
