"""The small widgets that the panels are made of."""

from __future__ import annotations

from functools import partial

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QPaintEvent, QResizeEvent
from qtpy.QtWidgets import (
    QComboBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QStackedLayout,
    QStyle,
    QStyleOptionComboBox,
    QStylePainter,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_crfasrnn._qt.panels.look import GAP
from napari_crfasrnn._qt.panels.state import Action, Cure, Message, Progress

LEAST_BAR = 60  # pixels of a progress bar
LEAST_TITLE = 180  # pixels: a longer title, which may have a person's words, is cut
LEAST_CHARACTERS = 16  # of a combo box, its arrow counted as some


class Sentence(QLabel):  # type: ignore[misc]
    """A text that wraps. What it needs at its width counts, not what Qt thinks a text of its length takes."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWordWrap(True)
        policy = QSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)

    def minimumSizeHint(self) -> QSize:  # noqa: N802 - Qt's
        """Return a line: a layout asks for the height at the width there is, too."""
        return QSize(1, self.fontMetrics().height())


class MessageLine(QWidget):  # type: ignore[misc]
    """A sentence, and buttons that cure what it tells of: one beside it, several below."""

    cured = Signal(str)

    def __init__(self, parent: QWidget | None = None, *, keep_room: bool = False) -> None:
        super().__init__(parent)
        self._cures: tuple[Cure, ...] = ()
        self._keep_room = keep_room  # so that what is below does not jump
        self.label = Sentence()
        self.label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.buttons: list[QPushButton] = []
        self._beside, self._below = row(self.label), row()
        self._beside.setStretch(0, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(GAP)
        layout.addLayout(self._beside)
        layout.addLayout(self._below)
        self.show_message(Message())

    def show_message(self, message: Message) -> None:
        """Show a message; an empty one takes no room."""
        self.label.setText(message.text)
        self.label.setAccessibleName(message.text)
        set_property(self.label, "tone", message.tone)
        if message.cures != self._cures:
            self._show_cures(message.cures)
        self.setVisible(self._keep_room or bool(message.text))

    def _show_cures(self, cures: tuple[Cure, ...]) -> None:
        self._cures = cures
        for old in self.buttons:  # one of them may have been clicked just now
            old.hide()
            old.deleteLater()
        self.buttons = [button(cure.text, cure.tip or cure.text) for cure in cures]
        for made, cure in zip(self.buttons, cures, strict=True):
            made.clicked.connect(partial(self._tell, cure.name))
            (self._beside if len(cures) == 1 else self._below).addWidget(made)

    def _tell(self, name: str) -> None:
        self.cured.emit(name)


class ProgressRow(QWidget):  # type: ignore[misc]
    """How far a task is, and a button that stops it."""

    cancelled = Signal()

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.bar = QProgressBar()
        self.bar.setMinimumWidth(LEAST_BAR)
        self.bar.setAccessibleName(name)
        self.cancel = button("Cancel", "Stop; everything stays as it was before.")
        self.cancel.clicked.connect(self.cancelled)
        layout = row(self.bar, self.cancel)
        layout.setStretch(0, 1)
        self.setLayout(layout)

    def show_progress(self, progress: Progress) -> None:
        """Draw."""
        self.bar.setRange(0, progress.total)  # 0, 0 moves to and fro
        self.bar.setValue(progress.done)
        self.bar.setTextVisible(progress.total > 0)
        self.bar.setFormat("%p %")


class TaskButton(QWidget):  # type: ignore[misc]
    """A button that becomes a progress bar with Cancel while its task is at work."""

    clicked = Signal()
    cancelled = Signal()

    def __init__(self, text: str, tooltip: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.button = button(text, tooltip)
        self.button.clicked.connect(self.clicked)
        self._busy = ProgressRow(f"Progress of {text.lower()}")
        self._busy.cancelled.connect(self.cancelled)
        self.bar, self.cancel = self._busy.bar, self._busy.cancel
        self._stack = QStackedLayout(self)
        self._stack.setContentsMargins(0, 0, 0, 0)
        self._stack.addWidget(self.button)
        self._stack.addWidget(self._busy)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def show_action(self, action: Action, progress: Progress | None) -> None:
        """Show the button, or how far its task is."""
        show_action(self.button, action)
        self._stack.setCurrentIndex(0 if progress is None else 1)
        if progress is not None:
            self._busy.show_progress(progress)


class ElidedLabel(QLabel):  # type: ignore[misc]
    """A text in one line, cut where there is no room; the tooltip has all of it.

    Parameters
    ----------
    look
        What the style sheet calls it.
    least
        Pixels that it has in any case, if its text takes as many.
    """

    def __init__(self, look: str, *, least: int = 1) -> None:
        super().__init__()
        self.setObjectName(look)
        self.setSizePolicy(QSizePolicy.Policy.Maximum, QSizePolicy.Policy.Fixed)
        self._whole, self._least = "", least

    def show_text(self, text: str, tooltip: str | None = None) -> None:
        """Show a text, and say it or something else in the tooltip."""
        self._whole = text
        self.setToolTip(text if tooltip is None else tooltip)
        self.setAccessibleName(text)
        self.setVisible(bool(text))
        self.updateGeometry()
        self._cut()

    def sizeHint(self) -> QSize:  # noqa: N802 - Qt's
        """Return the room that the whole text takes."""
        return QSize(self.fontMetrics().horizontalAdvance(self._whole) + 8, super().sizeHint().height())

    def minimumSizeHint(self) -> QSize:  # noqa: N802 - Qt's
        """Return the least room: the text can be cut."""
        return QSize(min(self._least, self.sizeHint().width()), super().minimumSizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802 - Qt's
        """Cut the text anew."""
        super().resizeEvent(event)
        self._cut()

    def _cut(self) -> None:
        self.setText(self.fontMetrics().elidedText(self._whole, Qt.TextElideMode.ElideRight, self.width()))


class ElidedCombo(QComboBox):  # type: ignore[misc]
    """A combo box whose text ends in an ellipsis where there is no room. Its list takes the room it needs."""

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802 - Qt's
        """Draw as Qt does, but for the text."""
        option = QStyleOptionComboBox()
        self.initStyleOption(option)
        style, painter = self.style(), QStylePainter(self)
        room = style.subControlRect(
            QStyle.ComplexControl.CC_ComboBox, option, QStyle.SubControl.SC_ComboBoxEditField, self
        )
        text = option.currentText or self.placeholderText()
        option.currentText = self.fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, room.width())
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)

    def minimumSizeHint(self) -> QSize:  # noqa: N802 - Qt's
        """Return the room of a few characters; Qt's asks for all of the text where nothing is chosen."""
        least = super().minimumSizeHint()
        return QSize(
            min(least.width(), LEAST_CHARACTERS * self.fontMetrics().averageCharWidth()), least.height()
        )

    def showPopup(self) -> None:  # noqa: N802 - Qt's
        """Open the list."""
        view = self.view()
        view.setMinimumWidth(view.sizeHintForColumn(0) + view.verticalScrollBar().sizeHint().width())
        super().showPopup()


class Section(QWidget):  # type: ignore[misc]
    """A titled part of the column that folds away."""

    toggled = Signal(bool)

    def __init__(self, title: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._arrow = QToolButton()
        self._arrow.setObjectName("fold")
        self._arrow.setCheckable(True)
        self._arrow.setChecked(True)
        self._arrow.setAutoRaise(True)
        self._arrow.setStyleSheet("QToolButton { background: transparent; padding: 0px; border: 0; }")
        self._arrow.setFixedSize(16, 16)
        self._arrow.toggled.connect(self._fold)
        self.title = ElidedLabel("title", least=LEAST_TITLE)
        rule = QFrame()
        rule.setObjectName("rule")
        rule.setFixedHeight(1)
        self.note = ElidedLabel("quiet")
        head = row(self._arrow, self.title, rule, self.note)
        head.setStretch(2, 1)
        head.setStretch(3, 100)  # the rule takes what the note leaves
        self.body = QWidget()
        self.content = QVBoxLayout(self.body)
        self.content.setContentsMargins(0, 0, 0, 0)
        self.content.setSpacing(GAP)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(GAP // 2)
        layout.addLayout(head)
        layout.addWidget(self.body)
        self.set_title(title)
        self._fold(True)

    def set_title(self, title: str) -> None:
        """Change what the section is called."""
        self.title.show_text(title)
        self._arrow.setAccessibleName(f"Fold {title}")
        self._arrow.setToolTip(f"Fold or unfold “{title}”")

    @property
    def is_open(self) -> bool:
        """Whether the content is shown."""
        return bool(self._arrow.isChecked())

    def set_open(self, is_open: bool) -> None:
        """Fold or unfold."""
        self._arrow.setChecked(is_open)

    def _fold(self, is_open: bool) -> None:
        self._arrow.setArrowType(Qt.ArrowType.DownArrow if is_open else Qt.ArrowType.RightArrow)
        self.body.setVisible(is_open)
        self.toggled.emit(is_open)


def button(text: str, tooltip: str, *, checkable: bool = False) -> QPushButton:
    """Return a push button that says what it does."""
    made = QPushButton(text)
    made.setToolTip(tooltip)
    made.setProperty("tip", tooltip)
    made.setAccessibleName(text)
    made.setCheckable(checkable)
    return made


def tool_button(text: str, tooltip: str, *, checkable: bool = False) -> QToolButton:
    """Return a small button that says what it does."""
    made = QToolButton()
    made.setText(text)
    made.setToolTip(tooltip)
    made.setProperty("tip", tooltip)
    made.setAccessibleName(tooltip.split(".")[0].split(" (")[0])
    made.setCheckable(checkable)
    return made


def show_action(widget: QPushButton | QToolButton, action: Action) -> None:
    """Let a button look as it may be used; where it may not, its tooltip says why."""
    widget.setEnabled(action.enabled)
    tip = widget.property("tip")
    widget.setToolTip(tip if action.enabled or not action.why_not else action.why_not)
    set_property(widget, "primary", "true" if action.primary else "false")


def set_property(widget: QWidget, name: str, value: str) -> None:
    """Set a property that the style sheet looks at."""
    if widget.property(name) != value:
        widget.setProperty(name, value)
        widget.style().unpolish(widget)
        widget.style().polish(widget)


def row(*widgets: QWidget) -> QHBoxLayout:
    """Return widgets side by side."""
    layout = QHBoxLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(GAP)
    for widget in widgets:
        layout.addWidget(widget)
    return layout
