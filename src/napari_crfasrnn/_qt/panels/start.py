"""Image, model, and the one button."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_crfasrnn._qt.panels.look import GAP
from napari_crfasrnn._qt.panels.parts import (
    ElidedCombo,
    MessageLine,
    TaskButton,
    button,
    row,
    show_action,
    tool_button,
)
from napari_crfasrnn._qt.panels.state import Message, StartState

SAMPLES = (("astronaut", "A photograph"), ("cell", "A micrograph"))


class StartPanel(QWidget):  # type: ignore[misc]
    """Image, model, and the one button."""

    image_chosen = Signal(str)
    model_chosen = Signal(str)
    model_file_wanted = Signal()
    segment_clicked = Signal()
    cancelled = Signal()
    all_slices_chosen = Signal(bool)
    channels_chosen = Signal(bool)
    sample_wanted = Signal(str)
    drawing_toggled = Signal(bool)
    box_layer_chosen = Signal(str)
    score_chosen = Signal(float)
    cured = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.image = _combo("Image", "The image layer to work on. It follows the layer that is selected.")
        self.image.activated.connect(lambda place: self.image_chosen.emit(self.image.itemData(place)))
        self.image.activated.connect(self.image.clearFocus)  # keys are for the canvas now
        self.draw = tool_button(
            "▭", "Draw boxes around objects. Segment heeds them; press again to stop drawing.", checkable=True
        )
        self.draw.clicked.connect(self.drawing_toggled)
        self.boxes = _combo("Boxes", "The layer of boxes that Segment heeds.")
        self.boxes.activated.connect(lambda place: self.box_layer_chosen.emit(self.boxes.itemData(place)))
        self.score = QDoubleSpinBox()
        self.score.setAccessibleName("How sure")
        self.score.setToolTip("How sure the next box is, and those that are selected: from 0 to 1.")
        self.score.setRange(0, 1)
        self.score.setSingleStep(0.05)
        self.score.setKeyboardTracking(False)
        self.score.valueChanged.connect(self.score_chosen)
        self.model = _combo("Model", "The model that segments.")
        self.model.activated.connect(lambda place: self.model_chosen.emit(self.model.itemData(place)))
        self.more = tool_button("File…", "Open a model file")
        self.more.clicked.connect(self.model_file_wanted)

        self.channels = _combo("First axis", "What the first axis of the image holds.")
        self.channels.addItems(["stack of slices", "channels"])
        self.channels.activated.connect(lambda place: self.channels_chosen.emit(place == 1))
        self.slices = _combo("Slices", "Whether to segment the slice that is shown, or all of them.")
        self.slices.addItems(["this slice", "all slices"])
        self.slices.activated.connect(lambda place: self.all_slices_chosen.emit(place == 1))
        self.slices.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)

        self.task = TaskButton("Segment", "Segment the image with this model (S)")
        self.task.button.setObjectName("segment")
        self.task.clicked.connect(self.segment_clicked)
        self.task.cancelled.connect(self.cancelled)
        self.message = MessageLine(keep_room=True)
        self.message.cured.connect(self.cured)

        self.empty = self._make_empty()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(GAP)
        layout.addWidget(self.empty)
        self._image_row = _labelled("Image", self.image, self.draw)
        self._boxes_row = _labelled("Boxes", self.boxes, self.score)
        self._channels_row = _labelled("Axis", self.channels)
        model_row = _labelled("Model", self.model, self.more)
        for part in (self._image_row, self._channels_row, self._boxes_row, model_row):
            layout.addWidget(part)
        go = row(self.task, self.slices)
        go.setStretch(0, 1)
        layout.addLayout(go)
        layout.addWidget(self.message)

    def show_state(self, state: StartState) -> None:
        """Draw."""
        _fill(self.image, [(key, name, "") for key, name in state.images], state.image)
        _fill(self.model, state.models, state.model)
        self.model.setPlaceholderText("Looking for models…" if state.loading else "None chosen")
        self.empty.setVisible(not state.images)
        self._image_row.setVisible(bool(state.images))
        self._channels_row.setVisible(state.channels is not None)
        self.channels.setCurrentIndex(int(bool(state.channels)))
        show_action(self.draw, state.draw)
        self.draw.setChecked(state.drawing)
        self._boxes_row.setVisible(bool(state.box_layers))
        _fill(
            self.boxes,
            [("", "none", ""), *((name, text, "") for name, text in state.box_layers)],
            state.box_layer,
        )
        self.score.setVisible(state.score is not None)
        if state.score is not None and abs(self.score.value() - state.score) > 5e-3:
            self.score.blockSignals(True)
            self.score.setValue(state.score)
            self.score.blockSignals(False)
        self.slices.setVisible(state.slice_text is not None and state.progress is None)
        self.slices.setItemText(0, state.slice_text or "this slice")
        self.slices.setCurrentIndex(int(state.all_slices))
        self.task.button.setText(state.segment_text)
        self.task.show_action(state.segment, state.progress)
        for widget in (self.image, self.model, self.more, self.channels, self.slices, self.boxes, self.score):
            widget.setEnabled(state.progress is None)
        self.message.show_message(Message(state.progress.text) if state.progress else state.message)

    def _make_empty(self) -> QWidget:
        sentence = QLabel("Open an image, or try one of these:")
        sentence.setWordWrap(True)
        widget = QWidget()
        layout = QVBoxLayout(widget)
        layout.setContentsMargins(0, GAP, 0, GAP)
        layout.setSpacing(GAP)
        layout.addWidget(sentence)
        samples = QHBoxLayout()
        samples.setSpacing(GAP)
        for name, text in SAMPLES:
            sample = button(text, f"Open the sample image “{name}”")
            sample.clicked.connect(lambda _=False, name=name: self.sample_wanted.emit(name))
            samples.addWidget(sample)
        layout.addLayout(samples)
        return widget


def _combo(name: str, tooltip: str) -> QComboBox:
    combo = ElidedCombo()
    combo.setAccessibleName(name)
    combo.setToolTip(tooltip)
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(8)
    combo.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return combo


def _labelled(text: str, *widgets: QWidget) -> QWidget:
    label = QLabel(text)
    label.setMinimumWidth(48)
    label.setBuddy(widgets[0])
    whole = QWidget()
    layout = row(label, *widgets)
    layout.setStretch(1, 1)
    whole.setLayout(layout)
    return whole


def _fill(combo: QComboBox, entries: Sequence[tuple[str, str, str]], current: str | None) -> None:
    """Show entries (data, text, why it cannot be chosen) in a combo box without telling anybody."""
    shown = [(combo.itemData(i), combo.itemText(i)) for i in range(combo.count())]
    if shown != [(data, text) for data, text, _ in entries]:
        combo.clear()
        for place, (data, text, problem) in enumerate(entries):
            combo.addItem(text, data)
            combo.setItemData(place, problem or text, Qt.ItemDataRole.ToolTipRole)
            combo.model().item(place).setEnabled(not problem)
    combo.setCurrentIndex(combo.findData(current) if current is not None else -1)
    if combo.currentText():
        combo.setToolTip(combo.currentText())
