"""The report of one round of learning, in a window of its own beside the work."""

from __future__ import annotations

from html import escape
from types import SimpleNamespace

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDialog, QLabel, QVBoxLayout, QWidget

from napari_crfasrnn._qt.panels.learn import LossPlot
from napari_crfasrnn._qt.panels.look import GAP, Theme, style_sheet
from napari_crfasrnn._qt.panels.state import RoundRow

PLOT_HEIGHT = 180  # pixels


class RoundReport(QDialog):  # type: ignore[misc]
    """What a round learnt from, how it went, and what came of it.

    Parameters
    ----------
    round
        What is shown.
    theme
        Its colours.
    parent
        The widget that it belongs to.
    """

    def __init__(self, round: RoundRow, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowModality(Qt.WindowModality.NonModal)
        self.setWindowTitle(round.title)
        self.setStyleSheet(style_sheet(theme))
        layout = QVBoxLayout(self)
        layout.setSpacing(2 * GAP)
        facts = QLabel("<br>".join(map(escape, round.facts)))
        facts.setWordWrap(True)
        layout.addWidget(facts)
        if len(round.history) > 1:
            plot = LossPlot(theme, PLOT_HEIGHT)
            plot.show_history(
                [SimpleNamespace(iteration=i, loss=loss, locked_miou=iou) for i, loss, iou in round.history]
            )
            layout.addWidget(plot.widget)
            layout.addWidget(plot.legend)
        rows = "".join(
            f"<tr><td>{name}&nbsp;</td><td align=right>{before}&nbsp;→&nbsp;{after}&nbsp;</td>"
            f"<td align=right>&nbsp;{pixels} px</td></tr>"
            for name, before, after, pixels in round.classes
        )
        if rows:
            table = QLabel(f"Overlap (IoU) with labels kept aside, CRF included:<table>{rows}</table>")
            layout.addWidget(table)
