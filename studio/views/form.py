"""A form from field descriptions (`engine.specs.fields.describe_fields`): one editor a field, its fault under it.

Numbers are read and shown in the person's locale and handed out as plain Python values. Simple fields stand open, advanced
ones are folded with a count of what differs from the default. The wheel never changes a field that has no focus.
"""

from __future__ import annotations

import json
import re
from typing import Any

from PySide6.QtCore import QLocale, Qt, Signal
from PySide6.QtWidgets import QCheckBox, QComboBox, QFormLayout, QHBoxLayout, QLabel, QLineEdit, QPlainTextEdit, QVBoxLayout, QWidget

from studio.core.text import teach as words
from studio.core.text.spoken import spoken, spoken_setting
from studio.views import a11y, theme
from studio.views.parts import Column, Fold, text

DECIMAL = re.compile(r"[-+]?0[.,]\d+$")
TOO_PRECISE = 12                           # digits; more would show what binary numbers are like
NUMBERS = ("int", "float", "number")       # the last one is whole or a share, as it is written
LABELS = 190                               # pixels, so that all forms of a page line up


class Faulty(ValueError):
    """What stands in an editor cannot be a value; the message is the sentence for the person."""


class Field(QWidget):
    """One editor with its unit and the line for its fault."""

    changed = Signal()

    def __init__(self, about: dict, locale: QLocale):
        super().__init__()
        self.about, self._locale, self._default = about, locale, about["default"]
        self.editor = self._make()
        self.label, self.help, unit = (spoken_setting(about[part]) for part in ("label", "help", "unit"))
        a11y.name(self.editor, f"{self.label} ({unit})" if unit else self.label, self.help)
        self.editor.setToolTip(self.help)
        a11y.quiet_wheel(self.editor)
        self._fault = text("", "bad small")
        self._fault.hide()
        line = QHBoxLayout()
        line.setSpacing(theme.S)
        line.addWidget(self.editor, 0 if self._narrow else 1)
        if unit:
            line.addWidget(text(unit, "muted", wrap=False))
        if self._narrow:
            line.addStretch(1)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        column.addLayout(line)
        column.addWidget(self._fault)
        self.put(self._default)

    # --- values ---

    def value(self) -> Any:
        """What stands there as a plain Python value. Raises `Faulty`."""
        editor, about = self.editor, self.about
        if isinstance(editor, QCheckBox):
            return editor.isChecked()
        if isinstance(editor, QComboBox):
            return editor.currentData()
        written = editor.toPlainText() if isinstance(editor, QPlainTextEdit) else editor.text().strip()
        if about["type"] in NUMBERS:
            return self._number(written)
        if about["type"] == "dict":
            return self._table(written)
        if not written:
            if about.get("required"):
                raise Faulty(words.FORM_NEEDED())
            return self._default if self._default is None else type(self._default)()
        if isinstance(editor, QPlainTextEdit):
            return [line.strip() for line in written.splitlines() if line.strip()]
        if about["type"] == "list":
            return self._several(written)
        return written

    def put(self, value: Any) -> None:
        """Show a value; nothing is emitted."""
        editor = self.editor
        blocked = editor.blockSignals(True)
        if isinstance(editor, QCheckBox):
            editor.setChecked(bool(value))
        elif isinstance(editor, QComboBox):
            editor.setCurrentIndex(max(0, editor.findData(value)))
        elif isinstance(editor, QPlainTextEdit):
            editor.setPlainText("\n".join(value or []))
        else:
            editor.setText(self._shown(value))
        editor.blockSignals(blocked)

    def set_default(self, value: Any) -> None:
        """What counts as "not changed" from now on (a preset's value)."""
        self._default = value
        if isinstance(self.editor, QLineEdit):
            shown = self._shown(value)
            self.editor.setPlaceholderText(words.FORM_DEFAULT(value=shown) if shown else words.FORM_AUTO())

    @property
    def default(self) -> Any:
        return self._default

    def complain(self, sentence: str) -> None:
        """Show a fault under the editor; an empty sentence takes it away."""
        self._fault.setText(sentence)
        self._fault.setVisible(bool(sentence))
        theme.look(self.editor, "wrong" if sentence else "")
        self.editor.setAccessibleDescription(f"{sentence} {self.help}".strip())

    def fault(self) -> str:
        """The sentence that stands under the editor, or empty."""
        return self._fault.text() if not self._fault.isHidden() else ""

    # --- inside ---

    @property
    def _narrow(self) -> bool:
        return isinstance(self.editor, (QComboBox, QCheckBox)) or self.about["type"] in NUMBERS

    def _make(self) -> QWidget:
        about = self.about
        if about["choices"]:
            combo = QComboBox()
            for choice in about["choices"]:
                combo.addItem(str(choice), choice)
            combo.currentIndexChanged.connect(self.changed)
            return combo
        if about["type"] == "bool":
            box = QCheckBox()
            box.toggled.connect(self.changed)
            return box
        if about["type"] == "list" and isinstance(about["default"], list) and not about["term"]:
            lines = QPlainTextEdit()
            lines.setFixedHeight(84)
            lines.setTabChangesFocus(True)
            lines.textChanged.connect(self.changed)
            return lines
        line = QLineEdit()
        if about["type"] in NUMBERS:
            line.setFixedWidth(150)
        line.textEdited.connect(self.changed)
        return line

    def _number(self, written: str) -> int | float | None:
        about = self.about
        if not written:
            if about.get("required"):
                raise Faulty(words.FORM_NEEDED())
            return self._default
        if DECIMAL.match(written):         # the sign between thousands elsewhere: nobody groups the digits behind a nought
            written, locale = written.replace(",", "."), QLocale.c()
        else:
            locale = self._locale
        value, fine = locale.toDouble(written)
        if not fine:
            value, fine = QLocale.c().toDouble(written)        # 2e-4 copied from a paper is understood everywhere
        if not fine or value != value:
            raise Faulty(words.FORM_NO_NUMBER(text=written))
        if about["type"] == "int" and value != int(value):
            raise Faulty(words.FORM_NO_WHOLE(text=written))
        if about["low"] is not None and value < about["low"]:
            raise Faulty(words.FORM_LOW(low=self._shown(about["low"])))
        if about["high"] is not None and value > about["high"]:
            raise Faulty(words.FORM_HIGH(high=self._shown(about["high"])))
        return int(value) if about["type"] == "int" or about["type"] == "number" and value == int(value) else value

    def _table(self, written: str) -> dict | None:
        if not written:
            return None if self._default is None else {}
        try:
            value = json.loads(written)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Faulty(words.FORM_NO_TABLE())
        return value

    def _several(self, written: str) -> Any:
        """One word stays a word ("all-linear", a regular expression), several are a list; whole numbers become numbers."""
        parts = [part.strip() for part in written.split(",") if part.strip()]
        values = [int(part) if part.lstrip("-").isdigit() else part for part in parts]
        return values[0] if len(values) == 1 and isinstance(values[0], str) else values

    def _shown(self, value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, bool):
            return str(value)
        if isinstance(value, int):
            plain = QLocale(self._locale)
            plain.setNumberOptions(QLocale.NumberOption.OmitGroupSeparator)
            return plain.toString(value)
        if isinstance(value, float):
            return self._locale.toString(value, "g", TOO_PRECISE)
        if isinstance(value, dict):
            return json.dumps(value, ensure_ascii=False) if value else ""
        if isinstance(value, (list, tuple)):
            return ", ".join(map(str, value))
        return str(value)


class Form(QWidget):
    """All fields of one description.

    Args:
        fields: dicts as `describe_fields` gives them. leave_out: names that are chosen elsewhere.
        folded: title under which the advanced fields are folded away; empty shows all of them flat.
    """

    changed = Signal(str)                  # name of the field that was edited by hand

    def __init__(self, fields: list[dict], *, leave_out: tuple[str, ...] = (), folded: str = "", locale: QLocale | None = None):
        super().__init__()
        self.fields: dict[str, Field] = {}
        simple, advanced = _rows(), _rows()
        for about in fields:
            if about["name"] in leave_out:
                continue
            field = Field(about, locale or QLocale())
            self.fields[about["name"]] = field
            field.changed.connect(lambda name=about["name"]: self._edited(name))
            (advanced if folded and about["advanced"] else simple).addRow(self._label(about, field), field)
        column = Column(simple, spacing=theme.M, parent=self)
        if advanced.rowCount():
            inside = QWidget()
            inside.setLayout(advanced)
            self.fold = Fold(folded, inside)
            column.addWidget(self.fold)

    def values(self) -> dict[str, Any]:
        """Name → value of every field that can be read; those with a fault are left out (see `problems`)."""
        found = {}
        for name, field in self.fields.items():
            try:
                found[name] = field.value()
            except Faulty:
                continue
        return found

    def different(self) -> dict[str, Any]:
        """Name → value of the fields that differ from their default."""
        return {name: value for name, value in self.values().items() if value != self.fields[name].default}

    def put(self, values: dict[str, Any]) -> None:
        """Show values; unknown names are ignored, nothing is emitted, faults are taken away."""
        for name, value in values.items():
            if name in self.fields:
                self.fields[name].put(value)
                self.fields[name].complain("")

    def set_defaults(self, values: dict[str, Any]) -> None:
        """What counts as the default from now on (a preset); fields that stood at their default follow it."""
        for name, value in values.items():
            if (field := self.fields.get(name)) is None:
                continue
            try:
                follows = field.value() == field.default
            except Faulty:
                follows = False
            field.set_default(value)
            if follows:
                field.put(value)

    def problems(self) -> dict[str, str]:
        """Name → sentence for what cannot be read; also shown under the fields."""
        found = {}
        for name, field in self.fields.items():
            try:
                field.value()
                field.complain("")
            except Faulty as fault:
                found[name] = str(fault)
                field.complain(str(fault))
        return found

    def complain(self, problems: dict[str, str]) -> None:
        """Show sentences that came from elsewhere (`InvalidSpec.facts["fields"]`) under their fields."""
        for name, sentence in problems.items():
            if name in self.fields:
                self.fields[name].complain(spoken(sentence))

    def _edited(self, name: str) -> None:
        field = self.fields[name]
        try:
            field.value()
            field.complain("")
        except Faulty as fault:
            field.complain(str(fault))
        self.changed.emit(name)

    def _label(self, about: dict, field: Field) -> QWidget:
        holder = QWidget()
        holder.setMinimumWidth(LABELS)
        column = QVBoxLayout(holder)
        column.setContentsMargins(0, 4, 0, 0)
        column.setSpacing(0)
        label = QLabel(field.label)
        label.setBuddy(field.editor)
        label.setToolTip(field.help)
        column.addWidget(label)
        technical = about["term"] or ""
        if technical and technical.lower() != about["label"].lower():
            column.addWidget(text(technical, "muted small", wrap=False))
        column.addStretch(1)
        return holder


def _rows() -> QFormLayout:
    layout = QFormLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setHorizontalSpacing(theme.L)
    layout.setVerticalSpacing(theme.M)
    layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    layout.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
    layout.setLabelAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignTop)
    return layout
