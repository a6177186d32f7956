"""Correcting: how much was, and what helps."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QWidget

from napari_crfasrnn._qt.panels.parts import MessageLine, Section, button, row, show_action
from napari_crfasrnn._qt.panels.state import Action, CorrectState, Message

LIVE_WAITS = "Live is getting ready…"


class CorrectPanel(Section):
    """Correcting: how much was, and what helps."""

    patch_wanted = Signal()  # the first one, or the next without a word on the present one
    patch_approved = Signal()
    patches_left = Signal()
    live_toggled = Signal(bool)
    refine_wanted = Signal(bool)  # whether only what is on the screen
    accept_clicked = Signal()
    uncertainty_toggled = Signal(bool)
    before_toggled = Signal(bool)
    cured = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Correct", parent)
        self.patch = button(
            "Correct this patch",
            "Zoom to the square where the model is least certain. Labels that are right all over a square "
            "teach more than strokes do (N)",
        )
        self.approve = button(
            "All of it is right", "Count every label in the frame as right; next one (Shift+A)"
        )
        self.skip = button("Skip", "Leave this square as it is; next one (N)")
        self.leave = button("Leave", "No more squares; the view goes back to where it was (Shift+N)")
        self.patch.clicked.connect(self.patch_wanted)
        self.skip.clicked.connect(self.patch_wanted)
        self.approve.clicked.connect(self.patch_approved)
        self.leave.clicked.connect(self.patches_left)
        self.live = button(
            "Live",
            "While you paint, labels around the stroke follow the edges of the image; of classes that no "
            "model knows yet, all labels of the image follow your strokes. Ctrl+Z takes back what followed, "
            "once more the stroke.",
            checkable=True,
        )
        self.refine_view = button(
            "Refine view",
            "Let what you painted spread to the edges, in what is on the screen (R)",
        )
        self.refine_all = button("Refine all", "Let what you painted spread to the edges, in the whole slice")
        self.accept = button(
            "Accept",
            "Say that all labels of the image are right; of a stack: of the slice that is shown, or of all "
            "slices, as it says beside Segment (A)",
            checkable=True,
        )
        self.uncertainty = button(
            "Uncertainty", "Show where the model is unsure: bright is unsure (U)", checkable=True
        )
        self.before = button(
            "Before CRF", "Show the labels as the network alone gave them (Shift+B, hold)", checkable=True
        )
        self.live.clicked.connect(self.live_toggled)
        self.refine_view.clicked.connect(lambda: self.refine_wanted.emit(True))
        self.refine_all.clicked.connect(lambda: self.refine_wanted.emit(False))
        self.accept.clicked.connect(self.accept_clicked)
        self.uncertainty.clicked.connect(self.uncertainty_toggled)
        self.before.clicked.connect(self.before_toggled)
        self.message = MessageLine()
        self.message.cured.connect(self.cured)
        patches = row(self.patch, self.approve, self.skip, self.leave)
        for place in (0, 1):
            patches.setStretch(place, 1)
        self.content.addLayout(patches)
        self.content.addLayout(row(self.live, self.refine_view, self.refine_all))
        self.content.addLayout(row(self.uncertainty, self.before, self.accept))
        self.content.addWidget(self.message)

    def show_state(self, state: CorrectState) -> None:
        """Draw."""
        show_action(self.patch, state.patch)
        show_action(self.approve, Action(primary=True))
        self.patch.setVisible(not state.in_patch)
        for widget in (self.approve, self.skip, self.leave):
            widget.setVisible(state.in_patch)
        for widget in (self.refine_view, self.refine_all):
            show_action(widget, state.refine)
        self.live.setChecked(state.live)
        self.live.setText("Live …" if state.live_waits else "Live")
        show_action(self.accept, state.accept)
        self.accept.setChecked(state.accepted)
        text = "Accept all" if state.accepts_all else "Accept"
        self.accept.setText("✓ Accepted" if state.accepted else text)
        for widget, action, on in (
            (self.uncertainty, state.uncertainty, state.uncertainty_on),
            (self.before, state.before, state.before_on),
        ):
            show_action(widget, action)
            widget.setChecked(on)
        self.note.show_text(LIVE_WAITS if state.live_waits else state.numbers)
        self.message.show_message(Message(state.progress.text) if state.progress else state.message)
