"""The classes: what is painted with, and what is seen."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QButtonGroup, QInputDialog, QWidget

from napari_crfasrnn._qt.panels.class_table import ClassTable
from napari_crfasrnn._qt.panels.look import Theme
from napari_crfasrnn._qt.panels.parts import MessageLine, Section, row, show_action, tool_button
from napari_crfasrnn._qt.panels.state import Action, ClassesState


class ClassesPanel(Section):
    """The classes: what is painted with, and what is seen."""

    add_wanted = Signal(str)
    delete_wanted = Signal(int)
    own_wanted = Signal()
    per_class_chosen = Signal(bool)
    cured = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Classes", parent)
        self.table = ClassTable()
        self.add = tool_button("+", "Add a class")
        self.add.clicked.connect(self._ask_name)
        self.delete = tool_button("−", "Delete the selected class; its pixels become unlabelled")
        self.delete.clicked.connect(self._delete_selected)
        self.own = tool_button(
            "Mine…", "Begin with classes of your own instead of the model's, which is best for micrographs"
        )
        self.own.clicked.connect(self.own_wanted)
        self.per_class = tool_button("per class", "A layer for each class in the image", checkable=True)
        self.combined = tool_button("combined", "One layer with all classes, alone", checkable=True)
        for tool in (self.add, self.delete, self.own, self.per_class, self.combined):  # they fill 300 pixels
            tool.setObjectName("slim")
        modes = QButtonGroup(self)
        modes.setExclusive(True)
        modes.addButton(self.per_class)
        modes.addButton(self.combined)
        self.per_class.clicked.connect(lambda: self.per_class_chosen.emit(True))
        self.combined.clicked.connect(lambda: self.per_class_chosen.emit(False))
        self.message = MessageLine()
        self.message.cured.connect(self.cured)
        tools = row(self.add, self.delete, self.own)
        tools.addStretch(1)
        layers = row(self.per_class, self.combined)
        layers.setSpacing(1)
        tools.addLayout(layers)
        self.content.addWidget(self.table)
        self.content.addLayout(tools)
        self.content.addWidget(self.message)
        self.content.setStretchFactor(self.table, 100)
        self.content.addStretch(1)

    def show_state(self, state: ClassesState, theme: Theme) -> None:
        """Draw."""
        self.table.show_rows(state.rows, state.painting, theme, state.edit.enabled)
        show_action(self.add, state.edit)
        show_action(self.own, state.edit)
        selected = self.table.selected_value()
        deletable = state.edit
        if deletable.enabled and selected in (None, 0):
            why = "The background stays." if selected == 0 else "Select a class first: click its row."
            deletable = Action(False, why)
        show_action(self.delete, deletable)
        (self.per_class if state.per_class else self.combined).setChecked(True)
        self.message.show_message(state.message)

    def _ask_name(self) -> None:
        name, given = QInputDialog.getText(self, "Add a class", "Name of the class")
        if given and name.strip():
            self.add_wanted.emit(name.strip())

    def _delete_selected(self) -> None:
        value = self.table.selected_value()
        if value is not None:
            self.delete_wanted.emit(value)
