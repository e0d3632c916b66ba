"""The methods as cards, each with what it is good for and what it cannot; any other one from a list."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QComboBox, QGridLayout, QWidget

from studio.core import methods
from studio.core.text import teach as words
from studio.core.text.spoken import spoken_setting
from studio.views import a11y, theme
from studio.views.parts import CardButton, Column, OneOf, Row, text

COLUMNS = 2
HELP = Qt.ItemDataRole.ToolTipRole


class MethodCards(QWidget):
    """Signal `chosen(str)`: the key of a card, or PEFT's name of another method."""

    chosen = Signal(str)

    def __init__(self):
        super().__init__()
        self.cards: dict[str, CardButton] = {}
        self._group = OneOf(self)
        grid = QGridLayout()
        grid.setSpacing(theme.S)
        for number, (key, about) in enumerate(methods.CARDS.items()):
            good, cannot = words.PLAN_METHOD_GOOD(what=about.good()), words.PLAN_METHOD_CANNOT(what=about.cannot())
            made = CardButton(about.title, text(about.title, "strong"), text(good, "small"), text(cannot, "muted small"),
                              description=f"{good} {cannot}", checkable=True)
            made.clicked.connect(lambda _=False, k=key: self.chosen.emit(k))
            self._group.addButton(made)
            self.cards[key] = made
            grid.addWidget(made, number // COLUMNS, number % COLUMNS)
            grid.setColumnStretch(number % COLUMNS, 1)
        self.others = QComboBox()
        self.others.addItem(words.PLAN_METHOD_ON_CARD(), "")
        a11y.name(self.others, words.PLAN_METHOD_OTHER(), words.PLAN_METHOD_OTHER_HELP())
        a11y.quiet_wheel(self.others)
        self.others.activated.connect(self._picked)
        self._help = text("", "muted small")
        label = text(words.PLAN_METHOD_OTHER(), "strong", wrap=False)
        label.setBuddy(self.others)
        Column(grid, Row(label, self.others, None, spacing=theme.M), self._help, spacing=theme.M, parent=self)
        self._help.hide()

    def know(self, known: list[dict]) -> None:
        """All methods of the engine, as a `MethodsReport` describes them."""
        choice = self._choice
        while self.others.count() > 1:
            self.others.removeItem(1)
        for about in sorted(known, key=lambda m: m["title"].casefold()):
            if about["peft_type"] not in methods.CARDS:
                self.others.addItem(about["title"], about["peft_type"])
                self.others.setItemData(self.others.count() - 1, spoken_setting(about["help"]), HELP)
        self.show_choice(choice)

    def show_choice(self, choice: str) -> None:
        """Mark what is chosen; nothing is emitted."""
        self._choice = choice
        for key, made in self.cards.items():
            made.setChecked(key == choice)
        if choice not in self.cards:
            self._group.uncheck()
        self.others.setCurrentIndex(max(0, self.others.findData("" if choice in self.cards else choice)))
        about = self.others.currentData(HELP) or ""
        self._help.setText(about)
        self._help.setVisible(bool(about))

    _choice = "LORA"

    def _picked(self, index: int) -> None:
        self.chosen.emit(self.others.itemData(index) or (self._choice if self._choice in self.cards else "LORA"))
