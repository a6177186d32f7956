"""Learning from the corrections."""

from __future__ import annotations

from functools import partial
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtGui import QActionGroup
from qtpy.QtWidgets import QLabel, QMenu, QToolButton, QVBoxLayout, QWidget

from napari_crfasrnn._qt.panels.look import Theme
from napari_crfasrnn._qt.panels.parts import (
    MessageLine,
    Section,
    TaskButton,
    button,
    row,
    show_action,
    tool_button,
)
from napari_crfasrnn._qt.panels.state import TIMES, Action, LearnState, RoundRow

PLOT_HEIGHT = 76  # pixels


class LearnPanel(Section):
    """Learning from the corrections, and what came of it."""

    learn_clicked = Signal()
    cancelled = Signal()
    kept = Signal()
    discarded = Signal()
    compare_clicked = Signal()
    round_wanted = Signal(int)
    round_compared = Signal(int)  # with the model in use
    report_wanted = Signal(int)
    seconds_wanted = Signal(float)
    thaw_wanted = Signal(bool)
    cured = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Learn", parent)
        self.task = TaskButton("Learn from my edits", "Teach the model what you corrected (Shift+L)")
        self.task.button.setObjectName("learn")
        self.task.clicked.connect(self.learn_clicked)
        self.task.cancelled.connect(self.cancelled)
        self.task.cancel.setToolTip(
            "Stop; you choose between what was learnt so far and the model from before"
        )
        self.plot_place = QWidget()
        layout = QVBoxLayout(self.plot_place)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        self.plot: LossPlot | None = None  # made when it is first needed: pyqtgraph takes its time to load
        self.result = MessageLine()
        self.result.cured.connect(self.cured)
        self.keep = button("Keep", "Use this model from now on, and store it in the project")
        self.discard = button("Discard", "Go back to the model from before")
        self.keep.clicked.connect(self.kept)
        self.discard.clicked.connect(self.discarded)
        self.compare = button(
            "Compare", "Show what the model from before and this one make of the slice, side by side"
        )
        self.compare.clicked.connect(self.compare_clicked)
        self.rounds = tool_button("Rounds ▾", "Earlier rounds of learning: use one again, compare, reports")
        self.rounds.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.rounds.setMenu(QMenu(self.rounds))
        self._rounds: tuple[tuple[RoundRow, ...], Action] | None = None
        self.effort = tool_button("", "How long a round may take, and whether it trains the encoder, too")
        self.effort.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        for tool in (self.effort, self.rounds):  # with the button beside them, they fill 300 pixels
            tool.setObjectName("slim")
        self._fill_effort()
        self.message = MessageLine()
        self.message.cured.connect(self.cured)
        self.decision = QWidget()
        self.decision.setLayout(row(self.keep, self.discard, self.compare))
        go = row(self.task, self.effort, self.rounds)
        go.setStretch(0, 1)
        self.content.addLayout(go)
        for widget in (self.plot_place, self.result, self.decision, self.message):
            self.content.addWidget(widget)

    def show_state(self, state: LearnState, theme: Theme) -> None:
        """Draw."""
        self.task.show_action(state.learn, state.progress)
        self.note.show_text(state.material)
        self.result.show_message(state.result)
        self.decision.setVisible(bool(state.result.text))
        show_action(self.compare, state.compare)
        self._fill_rounds(state.rounds, state.choose_round)
        self.effort.setText(f"{TIMES[state.seconds]}{' +' if state.thaw else ''} ▾")
        self.effort.setEnabled(state.progress is None)
        self.times[state.seconds].setChecked(True)
        self.thaw.setChecked(state.thaw)
        self.plot_place.setVisible(state.show_plot)
        if state.show_plot and self.plot is None:
            self.plot = LossPlot(theme)
            for part in (self.plot.widget, self.plot.legend):
                self.plot_place.layout().addWidget(part)
        if self.plot is not None:
            self.plot.set_theme(theme)
        self.message.show_message(state.message)

    def _fill_effort(self) -> None:
        menu = QMenu(self.effort)
        menu.setToolTipsVisible(True)
        one_of = QActionGroup(menu)
        self.times = {seconds: menu.addAction(f"Learn for up to {text}") for seconds, text in TIMES.items()}
        for seconds, action in self.times.items():
            action.setCheckable(True)
            one_of.addAction(action)
            action.triggered.connect(partial(self.seconds_wanted.emit, seconds))
        menu.addSeparator()
        self.thaw = menu.addAction("Train the encoder, too")
        self.thaw.setCheckable(True)
        self.thaw.setToolTip(
            "Slow, and for many corrected images: the network learns to see other things, "
            "instead of judging by what it sees"
        )
        self.thaw.triggered.connect(self.thaw_wanted)
        self.effort.setMenu(menu)

    def _fill_rounds(self, rounds: tuple[RoundRow, ...], choose: Action) -> None:
        self.rounds.setVisible(bool(rounds))
        show_action(self.rounds, choose)
        if self._rounds == (rounds, choose):
            return
        self._rounds = rounds, choose
        menu = self.rounds.menu()
        menu.clear()
        for one in rounds:
            part = menu.addMenu(f"{one.title} – in use" if one.in_use else one.title)
            for text, signal, off in (
                ("Use this round", self.round_wanted, one.in_use),
                ("Compare with the model in use", self.round_compared, one.in_use),
                ("Report…", self.report_wanted, False),
            ):
                part.addAction(text, partial(signal.emit, one.number)).setEnabled(not off)
        if rounds:
            used = any(one.in_use for one in rounds)
            before = menu.addAction("Before the first round", partial(self.round_wanted.emit, 0))
            before.setToolTip("Use the model again that the first round began with; no round is lost")
            before.setEnabled(used)

    def show_history(self, history: list[Any]) -> None:
        """Draw the loss and the IoU on held-back pixels of every `TrainStep` so far."""
        if self.plot is not None:
            self.plot.show_history(history)


class LossPlot:
    """Loss on the left axis, IoU on held-back pixels on the right one."""

    def __init__(self, theme: Theme, height: int = PLOT_HEIGHT) -> None:
        import pyqtgraph

        self._theme: Theme | None = None
        self.widget = pyqtgraph.PlotWidget()
        self.widget.setAccessibleName("Loss and IoU while learning")
        self.widget.setFixedHeight(height)
        self.legend = QLabel()
        self.legend.setObjectName("quiet")
        self.widget.setMenuEnabled(False)
        self.widget.setMouseEnabled(False, False)
        self.widget.hideButtons()
        plot = self.widget.getPlotItem()
        plot.showAxis("right")
        plot.getAxis("left").setWidth(28)
        plot.getAxis("right").setWidth(28)
        plot.getAxis("right").setTickSpacing(0.5, 0.5)
        plot.layout.setContentsMargins(2, 6, 2, 2)
        self._loss = plot.plot([], [])
        self._over = pyqtgraph.ViewBox()
        self._over.setMouseEnabled(False, False)
        self._over.setYRange(0, 1, padding=0.1)
        plot.scene().addItem(self._over)
        plot.getAxis("right").linkToView(self._over)
        self._over.setXLink(plot)
        plot.vb.sigResized.connect(lambda: self._over.setGeometry(plot.vb.sceneBoundingRect()))
        self._iou = pyqtgraph.PlotDataItem([], [], symbolSize=4)
        self._over.addItem(self._iou)
        self.set_theme(theme)

    def set_theme(self, theme: Theme) -> None:
        """Take the colours of a theme."""
        if theme == self._theme:
            return
        import pyqtgraph

        self._theme = theme
        self.widget.setBackground(theme.foreground)
        self.legend.setText(
            f'<span style="color: {theme.text}">━ loss</span> &nbsp; '
            f'<span style="color: {theme.good}">━● overlap (IoU) with labels kept aside</span>'
        )
        for side in ("left", "right", "bottom"):
            axis = self.widget.getAxis(side)
            axis.setPen(theme.quiet)
            axis.setTextPen(theme.quiet)
        self._loss.setPen(pyqtgraph.mkPen(theme.text, width=1.5))
        self._iou.setPen(pyqtgraph.mkPen(theme.good, width=1.5))
        self._iou.setSymbol("o")
        self._iou.setSymbolBrush(theme.good)
        self._iou.setSymbolPen(None)

    def show_history(self, history: list[Any]) -> None:
        """Draw the steps so far."""
        self._loss.setData([step.iteration for step in history], [step.loss for step in history])
        measured = [step for step in history if step.locked_miou is not None]
        self._iou.setData([step.iteration for step in measured], [step.locked_miou for step in measured])
