"""Colours and icons of the panels, all from napari's theme."""

from __future__ import annotations

from dataclasses import dataclass

from napari.utils.theme import get_theme
from qtpy.QtCore import QPointF, QRectF, Qt
from qtpy.QtGui import QColor, QIcon, QPainter, QPainterPath, QPen, QPixmap

GAP = 6  # pixels between controls
ROW = 24  # pixels, height of a row of the class table
LEAST_CONTRAST = 4.6  # of text and background; WCAG 2.1 asks for 4.5


@dataclass(frozen=True)
class Theme:
    """The colours of napari's theme that the panels use."""

    background: str
    foreground: str
    primary: str
    secondary: str
    highlight: str
    text: str
    quiet: str  # of text that is not to be read first
    accent: str
    problem: str
    good: str

    @property
    def is_dark(self) -> bool:
        """Whether the background is dark."""
        return bool(QColor(self.background).lightnessF() < 0.5)


def theme_of(name: str) -> Theme:
    """Return the colours of a theme by its name."""
    theme = get_theme(name)
    background, text = _hex(theme.background), _hex(theme.text)
    foreground = _hex(theme.foreground)
    return Theme(
        background=background,
        foreground=foreground,
        primary=_hex(theme.primary),
        secondary=_hex(theme.secondary),
        highlight=_hex(theme.highlight),
        text=text,
        quiet=_legible(_mix(text, background, 0.32), text, background, foreground),
        accent=_hex(theme.current),
        # napari's own colours of errors are meant as backgrounds: as text they are hard to read.
        problem=_legible(_hex(theme.error), text, background, foreground),
        good=_legible("#009e73", text, background, foreground),
    )


def style_sheet(theme: Theme) -> str:
    """Return what the panels add to napari's own style sheet."""
    on_accent = "#ffffff" if QColor(theme.accent).lightnessF() < 0.6 else "#000000"
    return f"""
    QLabel#quiet {{ color: {theme.quiet}; }}
    QLabel#title {{ font-weight: 600; }}
    QLabel[tone="quiet"] {{ color: {theme.quiet}; }}
    QLabel[tone="good"] {{ color: {theme.good}; }}
    QLabel[tone="problem"] {{ color: {theme.problem}; }}
    QPushButton {{ padding: 3px 8px; min-height: 18px; }}
    QPushButton[primary="true"] {{ background-color: {theme.accent}; color: {on_accent}; font-weight: 600; }}
    QPushButton[primary="true"]:hover {{ background-color: {_mix(theme.accent, theme.text, 0.15)}; }}
    QPushButton[primary="true"]:disabled {{
        background-color: {theme.primary}; color: {theme.quiet}; font-weight: 400;
    }}
    QPushButton:disabled {{ color: {_mix(theme.text, theme.background, 0.5)}; }}
    QPushButton#segment {{ min-height: 20px; }}
    QPushButton#learn {{ padding: 3px 2px; }}
    QToolButton {{
        background-color: {theme.primary}; border-radius: 2px; padding: 3px 6px; min-height: 18px;
    }}
    QToolButton#slim {{ padding: 3px; }}
    QToolButton:hover {{ background-color: {theme.highlight}; }}
    QToolButton:checked, QPushButton:checked {{
        background-color: {_mix(theme.accent, theme.foreground, 0.6)}; color: {theme.text};
        border-bottom: 2px solid {theme.accent}; padding-bottom: 1px;
    }}
    QToolButton:disabled {{ color: {_mix(theme.text, theme.background, 0.5)}; }}
    QToolButton::menu-indicator {{ image: none; width: 0px; }}
    QFrame#rule {{ background-color: {theme.primary}; padding: 0px; }}
    QProgressBar {{
        background-color: {theme.foreground}; border-radius: 2px; text-align: center;
        min-height: 26px; max-height: 26px; color: {theme.text};
    }}
    QProgressBar::chunk {{
        background-color: {_mix(theme.accent, theme.foreground, 0.25)}; border-radius: 2px;
    }}
    QTableView {{
        background-color: {theme.foreground}; border-radius: 2px; outline: 0; gridline-color: transparent;
        selection-background-color: {_mix(theme.accent, theme.foreground, 0.35)};
    }}
    QTableView::item {{ padding: 0px; }}
    QTableView::item:selected {{
        background-color: {_mix(theme.accent, theme.foreground, 0.4)}; color: {theme.text};
    }}
    QScrollArea {{ border: 0; }}
    QFrame:focus, QToolButton:focus, QPushButton:focus {{ border: 1px solid {theme.secondary}; }}
    """


def eye_icon(visible: bool, color: str, size: int = 16) -> QIcon:
    """Return an open eye, or a closed one."""
    pixmap, painter = _canvas(size)
    painter.setPen(QPen(QColor(color), size / 11))
    middle = size / 2
    if visible:
        lid = QPainterPath(QPointF(size * 0.08, middle))
        lid.quadTo(middle, size * 0.06, size * 0.92, middle)
        lid.quadTo(middle, size * 0.94, size * 0.08, middle)
        painter.drawPath(lid)
        painter.setBrush(QColor(color))
        painter.drawEllipse(QPointF(middle, middle), size * 0.13, size * 0.13)
    else:
        lid = QPainterPath(QPointF(size * 0.08, size * 0.42))
        lid.quadTo(middle, size * 0.88, size * 0.92, size * 0.42)
        painter.drawPath(lid)
        for x0, x1 in ((0.22, 0.14), (0.5, 0.5), (0.78, 0.86)):
            y0 = 0.66 if x0 == 0.5 else 0.58
            painter.drawLine(QPointF(size * x0, size * y0), QPointF(size * x1, size * (y0 + 0.2)))
    painter.end()
    return _icon(pixmap)


def color_icon(color: tuple[int, int, int], outline: str, size: int = 14) -> QIcon:
    """Return a filled square."""
    pixmap, painter = _canvas(size)
    painter.setPen(QPen(QColor(outline), 1))
    painter.setBrush(QColor(*color))
    painter.drawRoundedRect(QRectF(1, 1, size - 2, size - 2), 2, 2)
    painter.end()
    return _icon(pixmap)


def _icon(pixmap: QPixmap) -> QIcon:
    icon = QIcon(pixmap)
    icon.addPixmap(pixmap, QIcon.Mode.Selected)  # or Qt would tint it, and a class colour is a class colour
    return icon


def _canvas(size: int, ratio: float = 3.0) -> tuple[QPixmap, QPainter]:
    pixmap = QPixmap(int(size * ratio), int(size * ratio))  # sharp up to 300 % of screen scaling
    pixmap.setDevicePixelRatio(ratio)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    return pixmap, painter


def _hex(color: object) -> str:
    rgb = getattr(color, "as_rgb_tuple", None)
    if rgb is None:
        return str(color)
    r, g, b = rgb()[:3]
    return f"#{r:02x}{g:02x}{b:02x}"


def _legible(color: str, text: str, *backgrounds: str) -> str:
    """Return a colour, mixed with that of the text until it stands out from the backgrounds."""
    for share in range(10):
        mixed = _mix(color, text, share / 10)
        if all(_contrast(mixed, background) >= LEAST_CONTRAST for background in backgrounds):
            return mixed
    return text


def _contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, 1..21 (WCAG 2.1)."""

    def luminance(color: str) -> float:
        parts = (QColor(color).redF(), QColor(color).greenF(), QColor(color).blueF())
        r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in map(float, parts))
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _mix(color: str, other: str, share: float) -> str:
    a, b = QColor(color), QColor(other)
    parts = (
        round(x + (y - x) * share)
        for x, y in zip((a.red(), a.green(), a.blue()), (b.red(), b.green(), b.blue()), strict=True)
    )
    return "#{:02x}{:02x}{:02x}".format(*parts)
