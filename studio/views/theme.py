"""How everything looks: colours by role, one spacing scale, one type scale, one accent. Fusion with our own palette.

Views never write a colour or a font size. They give a widget a *look* and this module does the rest:

    theme.look(label, "title" | "heading" | "small" | "muted" | "mono" | "good" | "warn" | "bad")      texts
    theme.look(frame, "card" | "sunken" | "notice-bad" | "notice-warn" | "notice-good" | "notice-info" | "pill" | "drop")   frames
    theme.look(button, "primary" | "quiet" | "danger" | "link" | "big")                                 buttons
    layout.setContentsMargins(*theme.margins(theme.L)); layout.setSpacing(theme.M)                      4 8 12 16 24 32

Several looks may be given in one string ("muted small"). `tokens()` gives the colours for what is painted by hand; connect to
`changed` (argument: the new `Tokens`) to repaint it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from inspect import ismethod, signature
from collections.abc import Callable, Iterator
from weakref import WeakMethod

from PySide6.QtCore import QDir, QSize, Qt
from PySide6.QtGui import QColor, QFont, QFontDatabase, QIcon, QPainter, QPalette, QPixmap
from PySide6.QtSvg import QSvgRenderer
from PySide6.QtWidgets import QApplication, QWidget

from engine.store.resources import resource
from studio.views.dressing import dressing

RESOURCES = resource()
ICONS = RESOURCES / "icons"
XS, S, M, L, XL, XXL = 4, 8, 12, 16, 24, 32        # the spacing scale, in pixels
RADIUS = 8
MODES = ("system", "light", "dark", "contrast")


@dataclass(frozen=True)
class Tokens:
    """Colours by role, as ``#rrggbb``. Text roles reach 4.5:1 on ``window``, ``base``, ``card`` and their soft backgrounds."""

    name: str
    window: str                            # behind everything
    base: str                              # inside fields and lists
    card: str                              # raised surfaces
    sunken: str                            # wells, tracks, code
    border: str
    strong_border: str                     # outlines of controls, 3:1
    text: str
    muted: str
    accent: str                            # the one colour that says "this is the next thing to do"
    accent_hover: str
    on_accent: str
    accent_soft: str                       # selection, hover
    good: str
    good_soft: str
    warn: str
    warn_soft: str
    bad: str
    bad_soft: str
    curve_learned: str
    curve_unseen: str
    curve_grid: str
    learned_mark: str                      # behind text that is learned
    added_mark: str                        # behind words that differ


LIGHT = Tokens("light", window="#f4f3f0", base="#ffffff", card="#fdfcfa", sunken="#eae8e3", border="#dcd9d2", strong_border="#8b877e",
               text="#1e1f24", muted="#5d5f68", accent="#3a4fb8", accent_hover="#2f419c", on_accent="#ffffff", accent_soft="#e3e7f9",
               good="#1b6b3f", good_soft="#e2f2e8", warn="#845008", warn_soft="#fbeed8", bad="#ad2a2a", bad_soft="#fae5e3",
               curve_learned="#7c5d32", curve_unseen="#3a4fb8", curve_grid="#e4e2dc", learned_mark="#d9efdf", added_mark="#fbe9b9")
DARK = Tokens("dark", window="#17181c", base="#1d1f24", card="#212329", sunken="#121317", border="#33363f", strong_border="#757a87",
              text="#eceae6", muted="#a5a8b2", accent="#9fb0ff", accent_hover="#b8c5ff", on_accent="#131836", accent_soft="#2b3150",
              good="#7fd3a0", good_soft="#1d3528", warn="#efbf6a", warn_soft="#3b2e16", bad="#ff9d97", bad_soft="#43211f",
              curve_learned="#c9a878", curve_unseen="#9fb0ff", curve_grid="#2c2f37", learned_mark="#20432f", added_mark="#4d4118")
CONTRAST = Tokens("contrast", window="#000000", base="#000000", card="#000000", sunken="#000000", border="#ffffff", strong_border="#ffffff",
                  text="#ffffff", muted="#ffffff", accent="#ffe14d", accent_hover="#ffffff", on_accent="#000000", accent_soft="#2c2c00",
                  good="#7dffa8", good_soft="#002b10", warn="#ffd24d", warn_soft="#2e2300", bad="#ff9c94", bad_soft="#350400",
                  curve_learned="#ff9cf5", curve_unseen="#ffe14d", curve_grid="#4a4a4a", learned_mark="#004d1c", added_mark="#5a4a00")
_BY_NAME = {t.name: t for t in (LIGHT, DARK, CONTRAST)}


class _Changed:
    """Calls back with the new `Tokens` (or with nothing, if the callback takes nothing).

    Unlike a Qt signal it forgets callbacks whose widget is gone, also when they are lambdas.
    """

    def __init__(self) -> None:
        self._callbacks: list[tuple[Callable[[], Callable | None], bool]] = []

    def connect(self, callback: Callable) -> None:
        takes = any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in signature(callback).parameters.values())
        self._callbacks.append((WeakMethod(callback) if ismethod(callback) else lambda: callback, takes))

    def disconnect(self, callback: Callable) -> None:
        self._callbacks = [entry for entry in self._callbacks if entry[0]() != callback]

    def tell(self, tokens: Tokens) -> Iterator[None]:
        """Call them, one a step."""
        for entry in list(self._callbacks):
            yield
            found, takes = entry
            try:
                if (callback := found()) is not None:
                    callback(tokens) if takes else callback()
                    continue
            except RuntimeError as error:
                if "already deleted" not in str(error):
                    raise
            self._callbacks.remove(entry)


changed = _Changed()                       # after every change of theme or text size
_now: Tokens = LIGHT


def tokens() -> Tokens:
    """The colours in force."""
    return _now


def color(role: str, alpha: float = 1.0) -> QColor:
    """A role of `Tokens` as QColor, e.g. ``color("accent", 0.4)``."""
    found = QColor(getattr(_now, role))
    found.setAlphaF(alpha)
    return found


def apply(app: QApplication, mode: str = "system", text_size: float = 1.0) -> Tokens:
    """Dress the whole program: ``mode`` is light, dark, contrast or system; ``text_size`` is a factor (1 is normal)."""
    for _ in change(app, mode, text_size):
        pass
    return _now


def change(app: QApplication, mode: str, text_size: float) -> Iterator[None]:
    """`apply` in short steps."""
    if mode == "system":
        mode = "dark" if app.styleHints().colorScheme() == Qt.ColorScheme.Dark else "light"
    if app.property("dressed") == [mode, text_size]:
        return
    app.setProperty("dressed", None)       # neither, until it is done: another change may overtake this one
    QDir.setSearchPaths("icons", [str(ICONS)])

    def put_on() -> None:
        global _now
        _now = _BY_NAME[mode]
        app.setFont(_font(text_size))
        app.setPalette(_palette(_now))
        app.setStyleSheet(_sheet(_now, app.font().pointSizeF()))
        _tinted.cache_clear()
    if not app.styleSheet():               # the first time (a style sheet hides the style's name)
        app.setStyle("Fusion")
    yield from dressing(app, put_on, lambda: changed.tell(_now))
    app.setProperty("dressed", [mode, text_size])


def look(widget: QWidget, looks: str) -> QWidget:
    """Give a widget one or several looks (see the head of this file); an empty string takes them away. Returns the widget."""
    if widget.property("look") != looks:
        widget.setProperty("look", looks)
        widget.style().unpolish(widget)
        widget.style().polish(widget)
    return widget


def beside_work(widget: QWidget, letters: int) -> int:
    """The width that a panel beside the work asks for: so many letters, but never more than leaves the work its room."""
    return max(widget.minimumWidth(), min(letters * widget.fontMetrics().averageCharWidth(), widget.window().width() * 3 // 10))


def margins(size: int) -> tuple[int, int, int, int]:
    return size, size, size, size


def icon(name: str, role: str = "text") -> QIcon:
    """An icon of ``resources/icons`` in a role's colour (``role_disabled`` is drawn faint by Qt). Ask again after `changed`."""
    return _tinted(name, role, _now.name)


@lru_cache(maxsize=256)
def _tinted(name: str, role: str, theme: str) -> QIcon:
    result, renderer = QIcon(), QSvgRenderer(str(ICONS / f"{name}.svg"))
    for mode, tint in ((QIcon.Mode.Normal, color(role)), (QIcon.Mode.Disabled, color("muted", 0.45))):
        for size in (16, 20, 24, 32, 48):
            pixmap = QPixmap(QSize(size, size))
            pixmap.fill(Qt.GlobalColor.transparent)
            painter = QPainter(pixmap)
            renderer.render(painter)
            painter.setCompositionMode(QPainter.CompositionMode.CompositionMode_SourceIn)
            painter.fillRect(pixmap.rect(), tint)
            painter.end()
            result.addPixmap(pixmap, mode)
    return result


def mono_font() -> QFont:
    """For file names, numbers in columns and the exact text a model sees."""
    font = QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont)
    font.setPointSizeF(QApplication.font().pointSizeF() * 0.95)
    return font


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2, relative luminance)."""
    def luminance(value: str) -> float:
        channels = (int(value[i:i + 2], 16) / 255 for i in (1, 3, 5))
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _font(text_size: float) -> QFont:
    if "Inter" not in QFontDatabase.families():
        for file in (RESOURCES / "fonts").glob("*.otf"):
            QFontDatabase.addApplicationFont(str(file))
    font = QFont("Inter" if "Inter" in QFontDatabase.families() else QApplication.font().family())
    font.setPointSizeF(round(10 * text_size, 1))
    return font


def _palette(t: Tokens) -> QPalette:
    role, palette = QPalette.ColorRole, QPalette()
    for place, value in ((role.Window, t.window), (role.WindowText, t.text), (role.Base, t.base), (role.AlternateBase, t.sunken),
                         (role.Text, t.text), (role.Button, t.card), (role.ButtonText, t.text), (role.BrightText, t.bad),
                         (role.Highlight, t.accent), (role.HighlightedText, t.on_accent), (role.Link, t.accent),
                         (role.LinkVisited, t.accent), (role.ToolTipBase, t.card), (role.ToolTipText, t.text),
                         (role.PlaceholderText, t.muted), (role.Light, t.card), (role.Midlight, t.border), (role.Mid, t.border),
                         (role.Dark, t.strong_border), (role.Shadow, t.sunken), (role.Accent, t.accent)):
        palette.setColor(place, QColor(value))
    faint = QColor(t.muted)
    faint.setAlphaF(0.6)
    for place in (role.WindowText, role.Text, role.ButtonText):
        palette.setColor(QPalette.ColorGroup.Disabled, place, faint)
    palette.setColor(QPalette.ColorGroup.Disabled, role.Highlight, QColor(t.border))
    return palette


@lru_cache(maxsize=1)
def _template() -> str:
    return (RESOURCES / "studio.qss").read_text(encoding="utf-8")


def _sheet(t: Tokens, point: float) -> str:
    """`resources/studio.qss` with @roles replaced; sizes follow the text size (title 1.7, heading 1.2, small 0.88)."""
    values = {f.name: getattr(t, f.name) for f in fields(t)}
    values |= {"title_size": f"{point * 1.7:.1f}pt", "heading_size": f"{point * 1.2:.1f}pt", "small_size": f"{point * 0.88:.1f}pt",
               "normal_size": f"{point:.1f}pt", "radius": f"{RADIUS}px", "target": f"{max(20, round(point * 2))}px",
               "mono": QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont).family(),
               "tint": "dark" if contrast(t.on_accent, "#000000") < 6 else "light"}
    sheet = _template()
    for name in sorted(values, key=len, reverse=True):
        sheet = sheet.replace(f"@{name}", values[name])
    return sheet
