"""The few building blocks that all centre panels share: texts, cards, buttons, a scrolling page, a folding section."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QEvent, QSize, Qt, Signal
from PySide6.QtGui import QFontMetrics
from PySide6.QtWidgets import (QApplication, QButtonGroup, QFrame, QHBoxLayout, QLabel, QLayout, QPushButton, QScrollArea, QSizePolicy, QToolButton,
                               QVBoxLayout,
                               QWidget)

from studio.core.text.spoken import spoken
from studio.views import a11y, theme

PAGE_WIDTH = 980                           # pixels; longer lines are tiring to read


def text(words: str = "", looks: str = "", *, wrap: bool = True, selectable: bool = False) -> QLabel:
    """A plain-text label. It never interprets markup: what it shows may come from a file."""
    label = QLabel(words)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setWordWrap(wrap)
    if selectable:
        label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    if looks:
        theme.look(label, looks)
    return label


def button(words: str, slot: Callable[[], object], looks: str = "", *, help: str = "", icon: str = "") -> QPushButton:
    """A push button; ``help`` becomes its tooltip and description, ``icon`` a name of ``resources/icons``."""
    made = QPushButton(f" {words}" if icon and words else words)     # the blank keeps the words off the icon
    made.clicked.connect(lambda _=False: slot())
    made.setAutoDefault(False)
    a11y.name(made, words, help)
    made.setToolTip(help)
    if looks:
        theme.look(made, looks)
    if icon:
        role = "on_accent" if "primary" in looks else "bad" if "danger" in looks else "text"
        _tint(made, icon, role)
    return made


def _tint(made: QPushButton, icon: str, role: str) -> None:
    made.setProperty("tint", [icon, role])
    _dip(made)


def _dip(made: QPushButton) -> None:
    """Its icon in the colours of the theme, and as high as its letters."""
    side = max(18, QFontMetrics(QApplication.font()).height())
    made.setIcon(theme.icon(*made.property("tint")))
    made.setIconSize(QSize(side, side))


def retint(root: QWidget) -> None:
    """Icons in the colours of the new theme; `Panel` does it on `theme.changed`."""
    for made in root.findChildren(QPushButton):
        if made.property("tint"):
            _dip(made)
    for fold in root.findChildren(Fold):
        fold.retint()


class Panel(QWidget):
    """A workspace: `said(str)` goes to the status line, `failed(StudioError)` to the notices; its icons follow the theme."""

    said = Signal(str)
    failed = Signal(object)

    def __init__(self, title: str):
        super().__init__()
        self.title = title
        theme.changed.connect(self.restyle)        # a method, not a lambda: it is disconnected when the panel goes

    def restyle(self, *_: object) -> None:
        """The theme has changed."""
        retint(self)


class Column(QVBoxLayout):
    """A vertical layout from its items: widgets, layouts, numbers (space), None (stretch)."""

    def __init__(self, *items, spacing: int = theme.S, margin: int = 0, parent: QWidget | None = None):
        super().__init__(*([parent] if parent else []))
        self.setContentsMargins(*theme.margins(margin))
        self.setSpacing(spacing)
        fill(self, items)


class Row(QHBoxLayout):
    """A horizontal layout from its items, like `Column`."""

    def __init__(self, *items, spacing: int = theme.S, margin: int = 0, parent: QWidget | None = None):
        super().__init__(*([parent] if parent else []))
        self.setContentsMargins(*theme.margins(margin))
        self.setSpacing(spacing)
        fill(self, items)


def fill(layout, items) -> None:
    for item in items:
        if item is None:
            layout.addStretch(1)
        elif isinstance(item, int):
            layout.addSpacing(item)
        elif isinstance(item, QLayout):
            layout.addLayout(item)
        else:
            layout.addWidget(item)


def card(*items, spacing: int = theme.S, margin: int = theme.L, looks: str = "card") -> QFrame:
    """A raised surface with a column in it."""
    frame = QFrame()
    theme.look(frame, looks)
    Column(*items, spacing=spacing, margin=margin, parent=frame)
    return frame


class Scrolled(QScrollArea):
    """Content that scrolls where it must. It asks for no height of its own, so that what stands above and below it is never pushed away."""

    def __init__(self, content: QWidget):
        super().__init__()
        self.setWidget(content)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)

    def sizeHint(self) -> QSize:           # noqa: N802 (Qt's name)
        return QSize(super().sizeHint().width(), self.minimumSizeHint().height())


def page(*items, spacing: int = theme.L, width: int = PAGE_WIDTH) -> QScrollArea:
    """A page that scrolls when it must, its content centred and never wider than is good to read."""
    content = QWidget()
    theme.look(content, "page")
    content.setMaximumWidth(width)
    Column(*items, spacing=spacing, margin=theme.XL, parent=content)
    holder = QWidget()
    theme.look(holder, "page")
    outer = QHBoxLayout(holder)
    outer.setContentsMargins(0, 0, 0, 0)
    outer.addStretch(1)
    outer.addWidget(content, 1000)
    outer.addStretch(1)
    area = Scrolled(holder)
    area.content = content
    return area


def clear(layout: QLayout) -> None:
    """Take everything out of a layout and delete it."""
    while layout.count():
        item = layout.takeAt(0)
        if item.widget():
            item.widget().hide()
            item.widget().deleteLater()
        elif item.layout():
            clear(item.layout())


class Fold(QWidget):
    """A section that is folded away until it is asked for."""

    toggled = Signal(bool)

    def __init__(self, title: str, content: QWidget, *, open: bool = False):
        super().__init__()
        self.content = content
        self.head = QToolButton()
        self.head.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.head.setMinimumWidth(1)       # it says what has room: `_elide`
        self.head.setCheckable(True)
        self.head.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        theme.look(self.head, "fold")
        self.set_title(title)
        self.head.toggled.connect(self._toggle)
        Column(self.head, content, parent=self).setAlignment(self.head, Qt.AlignmentFlag.AlignLeft)
        content.setVisible(open)
        self.head.setChecked(open)
        self.retint()

    def set_title(self, title: str) -> None:
        self._title = title
        a11y.name(self.head, title)
        self._elide()

    def resizeEvent(self, event) -> None:  # noqa: N802 (Qt's name)
        super().resizeEvent(event)
        self._elide()

    def _elide(self) -> None:
        """A title longer than there is room is cut, with the whole as tooltip."""
        beside = 2 * self.head.iconSize().width() + theme.M
        shown = self.head.fontMetrics().elidedText(self._title, Qt.TextElideMode.ElideRight, max(80, self.width() - beside))
        self.head.setText(shown)
        self.head.setToolTip(self._title if shown != self._title else "")

    def open(self, yes: bool = True) -> None:
        self.head.setChecked(yes)

    def retint(self) -> None:
        self.head.setIcon(theme.icon("down" if self.head.isChecked() else "right", "muted"))

    def _toggle(self, yes: bool) -> None:
        self.content.setVisible(yes)
        self.retint()
        self.toggled.emit(yes)


_MOMENTS = {QEvent.Type.LayoutRequest, QEvent.Type.Polish, QEvent.Type.PolishRequest, QEvent.Type.StyleChange, QEvent.Type.FontChange,
            QEvent.Type.Show}


class CardButton(QPushButton):
    """A card that can be pressed: large, with several lines, heard as one button. Grows with its content."""

    def __init__(self, name: str, *items, description: str = "", spacing: int = theme.XS, margin: int = theme.L, checkable: bool = False,
                 least: int = 0):
        super().__init__()
        self.least = least
        theme.look(self, "card")
        a11y.name(self, name, description)
        self.setCheckable(checkable)
        self.setAutoDefault(False)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Minimum)
        Column(*items, None, spacing=spacing, margin=margin, parent=self)      # what is short stands above, as in its neighbour
        for label in self.findChildren(QWidget):
            label.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)

    def sizeHint(self) -> QSize:           # noqa: N802 (Qt's names)
        return QSize(self.layout().totalSizeHint().width(), self._height())

    def minimumSizeHint(self) -> QSize:    # noqa: N802
        return QSize(self.layout().totalMinimumSize().width(), self._height())

    def resizeEvent(self, event) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._fit()

    def event(self, event: QEvent) -> bool:
        done = super().event(event)
        if event.type() in _MOMENTS:
            self._fit()
        return done

    def _height(self) -> int:
        """What the content needs at the present width."""
        layout = self.layout()
        return layout.totalHeightForWidth(self.width()) if layout.hasHeightForWidth() else layout.totalSizeHint().height()

    def _fit(self) -> None:
        """A push button's style sets a fixed least height; the content's is the one that counts."""
        if self.layout() is not None and self.minimumHeight() != max(self.least, self._height()):
            self.setMinimumHeight(max(self.least, self._height()))


class OneOf(QButtonGroup):
    """Buttons of which one is chosen. Tab comes to the chosen one (or the first that can be pressed), arrows to the others."""

    def __init__(self, parent: QWidget):
        super().__init__(parent)
        self.buttonToggled.connect(lambda *_: self.settle())

    def settle(self) -> None:
        """Call after buttons came or went without any being chosen."""
        usable = [button for button in self.buttons() if button.isEnabled()]
        here = self.checkedButton() or (usable[0] if usable else None)
        for button in self.buttons():
            button.setFocusPolicy(Qt.FocusPolicy.StrongFocus if button is here else Qt.FocusPolicy.ClickFocus)

    def uncheck(self) -> None:
        """None is chosen any more."""
        if checked := self.checkedButton():
            self.setExclusive(False)
            checked.setChecked(False)
            self.setExclusive(True)
            self.settle()

    def empty(self) -> None:
        for button in self.buttons():
            self.removeButton(button)


def picture(name: str, role: str = "accent", size: int = 28) -> QLabel:
    """An icon as a picture that follows the theme."""
    label = Picture(name, role, size)
    label.retint()
    return label


class Picture(QLabel):
    def __init__(self, name: str, role: str, size: int):
        super().__init__()
        self._what, self._size = (name, role), size
        self.setFixedSize(size, size)
        theme.changed.connect(self.retint)

    def retint(self, *_: object) -> None:
        self.setPixmap(theme.icon(*self._what).pixmap(self._size, self._size))


def error_card(error, *buttons: QWidget) -> QFrame:
    """An error that stays where it matters: what · why · what to do, details folded with copy, and buttons that mend it."""
    from PySide6.QtGui import QGuiApplication

    from studio.core.text import work as words

    what, more = spoken(error.what), spoken(error.why, error.do)
    column = Column(text(what, "strong", selectable=True), spacing=theme.XS)
    mark = picture("error", "bad", 20)
    line = Row(mark, column, spacing=theme.M)
    line.setAlignment(mark, Qt.AlignmentFlag.AlignTop)
    line.setStretch(1, 1)
    frame = card(line, looks="notice-bad", margin=theme.M)
    if more:
        column.addWidget(text(more, selectable=True))
    row = Row(*buttons)
    if error.details:
        box = text(error.details, "mono small", selectable=True)
        whole = "\n".join(part for part in (what, more, error.details) if part)
        row.addWidget(button(words.COPY_DETAILS(), lambda: QGuiApplication.clipboard().setText(whole), "link"))
        column.addWidget(Fold(words.DETAILS(), box))
    if row.count():
        row.addStretch(1)
        column.addLayout(row)
    a11y.name(frame, what, more)
    return frame
