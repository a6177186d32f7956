"""The class table as a Qt model and view."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QAbstractTableModel, QModelIndex, QSize, Qt, Signal
from qtpy.QtGui import QColor, QFont
from qtpy.QtWidgets import QAbstractItemView, QColorDialog, QHeaderView, QTableView, QWidget

from napari_crfasrnn._qt.panels.look import ROW, Theme, color_icon, eye_icon
from napari_crfasrnn._qt.panels.state import ClassRow

EYE, COLOR, KEY, NAME, SHARE = range(5)
HEADERS = ("Visible", "Colour", "Key", "Class", "Share")
FEWEST_ROWS = 4  # from there the table takes what room there is


class ClassModel(QAbstractTableModel):  # type: ignore[misc]
    """Rows of the class table."""

    renamed = Signal(int, str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.rows: tuple[ClassRow, ...] = ()
        self.editable = True
        self.theme: Theme | None = None

    def set_rows(self, rows: tuple[ClassRow, ...]) -> None:
        """Show other rows."""
        if [row.value for row in rows] != [row.value for row in self.rows]:
            self.beginResetModel()
            self.rows = rows
            self.endResetModel()
        elif rows != self.rows:
            self.rows = rows
            self.dataChanged.emit(self.index(0, 0), self.index(len(rows) - 1, SHARE))

    def rowCount(self, parent: QModelIndex = QModelIndex()) -> int:  # noqa: B008, N802 - Qt's
        """Return the number of classes."""
        return 0 if parent.isValid() else len(self.rows)

    def columnCount(self, parent: QModelIndex = QModelIndex()) -> int:  # noqa: B008, N802 - Qt's
        """Return the number of columns."""
        return len(HEADERS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = 0) -> Any:  # noqa: N802 - Qt's
        """Return the name of a column, which screen readers say."""
        if orientation == Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return HEADERS[section]
        return None

    def flags(self, index: QModelIndex) -> Qt.ItemFlag:
        """Return what can be done with a cell."""
        flags = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
        if index.column() == NAME and self.editable:
            flags |= Qt.ItemFlag.ItemIsEditable
        return flags

    def data(self, index: QModelIndex, role: int = 0) -> Any:
        """Return what a cell shows."""
        row, column = self.rows[index.row()], index.column()
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.EditRole):
            return self._text(row, column, role)
        if role == Qt.ItemDataRole.DecorationRole and self.theme is not None:
            if column == EYE:
                return eye_icon(row.visible, self.theme.text if row.present else self.theme.quiet)
            if column == COLOR:
                return color_icon(row.color, self.theme.secondary)
        if role == Qt.ItemDataRole.ForegroundRole and self.theme is not None:
            quiet = not row.present or column == KEY
            return QColor(self.theme.quiet if quiet else self.theme.text)
        if role == Qt.ItemDataRole.TextAlignmentRole and column in (KEY, SHARE):
            side = Qt.AlignmentFlag.AlignRight if column == SHARE else Qt.AlignmentFlag.AlignHCenter
            return int(side | Qt.AlignmentFlag.AlignVCenter)
        if role == Qt.ItemDataRole.ToolTipRole:
            return self._tip(row, column)
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return self._tip(row, column) if column in (EYE, COLOR) else self._text(row, column, 0)
        return None

    def setData(self, index: QModelIndex, value: Any, role: int = 0) -> bool:  # noqa: N802 - Qt's
        """Rename a class."""
        if role != Qt.ItemDataRole.EditRole or index.column() != NAME or not str(value).strip():
            return False
        self.renamed.emit(self.rows[index.row()].value, str(value).strip())
        return True

    def _text(self, row: ClassRow, column: int, role: int) -> str | None:
        if column == KEY:
            return "" if row.key is None else str(row.key)
        if column == NAME:
            return row.name
        if column == SHARE and row.share is not None and row.present:
            if 0 < row.share < 0.0005:
                return "< 0.1 %"
            return f"{100 * row.share:.1f} %"
        return None

    def _tip(self, row: ClassRow, column: int) -> str:
        if column == EYE:
            return f"Hide {row.name}" if row.visible else f"Show {row.name}"
        if column == COLOR:
            return "Colour {}, {}, {}: double-click to change it".format(*row.color)
        key = "" if row.key is None else f" (key {row.key}, on the canvas)"
        absent = "" if row.present else " It is not in this image."
        return f"Click to paint with {row.name}{key}; double-click to rename it.{absent}"


class ClassTable(QTableView):  # type: ignore[misc]
    """The class table. A click paints with a class, its eye hides it, a double click edits it."""

    paint_wanted = Signal(int)
    eye_clicked = Signal(int, bool)
    renamed = Signal(int, str)
    recolored = Signal(int, int, int, int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("classes")
        self.setAccessibleName("Classes")
        self.rows = ClassModel(self)
        self.setModel(self.rows)
        self.rows.renamed.connect(self.renamed)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(
            QAbstractItemView.EditTrigger.DoubleClicked | QAbstractItemView.EditTrigger.EditKeyPressed
        )
        self.setShowGrid(False)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setIconSize(QSize(16, 16))
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(ROW)
        self.verticalHeader().setMinimumSectionSize(ROW)
        header = self.horizontalHeader()
        header.hide()
        header.setMinimumSectionSize(16)
        header.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        header.setSectionResizeMode(NAME, QHeaderView.ResizeMode.Stretch)
        for column, width in ((EYE, 26), (COLOR, 24), (KEY, 20), (SHARE, 64)):
            self.setColumnWidth(column, width)
        self.clicked.connect(self._on_clicked)
        self.doubleClicked.connect(self._on_double_clicked)

    def show_rows(
        self, rows: tuple[ClassRow, ...], painting: int | None, theme: Theme, editable: bool
    ) -> None:
        """Draw."""
        restyled = self.rows.theme != theme
        self.rows.theme, self.rows.editable = theme, editable
        self.rows.set_rows(rows)
        if restyled:
            self.viewport().update()
        values = [row.value for row in rows]
        if painting in values:
            self.selectRow(values.index(painting))
        else:
            self.clearSelection()
        n_rows = len(rows) or FEWEST_ROWS
        self.setMaximumHeight(2 * self.frameWidth() + ROW * n_rows)
        self.setMinimumHeight(2 * self.frameWidth() + ROW * min(n_rows, FEWEST_ROWS))

    def sizeHint(self) -> QSize:  # noqa: N802 - Qt's
        """Return the least that is of use."""
        return QSize(300, self.minimumHeight())  # the layout gives it what nobody else wants

    def selected_value(self) -> int | None:
        """Return the class whose row is selected."""
        index = self.currentIndex()
        return self.rows.rows[index.row()].value if index.isValid() else None

    def setFont(self, font: QFont) -> None:  # noqa: N802 - Qt's
        """Keep the rows as high as the font needs."""
        super().setFont(font)
        self.verticalHeader().setDefaultSectionSize(max(ROW, self.fontMetrics().height() + 6))

    def _on_clicked(self, index: QModelIndex) -> None:
        row = self.rows.rows[index.row()]
        if index.column() == EYE:
            self.eye_clicked.emit(row.value, not row.visible)
        else:
            self.paint_wanted.emit(row.value)
            self.clearFocus()  # keys are for the canvas now; here they would look for a name

    def _on_double_clicked(self, index: QModelIndex) -> None:
        if index.column() != COLOR or not self.rows.editable:
            return
        row = self.rows.rows[index.row()]
        color = QColorDialog.getColor(QColor(*row.color), self, f"Colour of {row.name}")
        if color.isValid():
            self.recolored.emit(row.value, color.red(), color.green(), color.blue())
