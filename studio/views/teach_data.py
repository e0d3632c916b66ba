"""Teach, step 1: choose, drop or paste examples; see what was found, and exactly what the model will see of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PySide6.QtCore import QTimer, Qt, Signal
from PySide6.QtGui import QColor, QTextCharFormat, QTextCursor
from PySide6.QtWidgets import (QComboBox, QFileDialog, QFrame, QPlainTextEdit, QSizePolicy, QStackedWidget, QTextEdit, QVBoxLayout,
                               QWidget)

from engine.errors import StudioError, explain
from engine.specs import DataReport, DescribeData, RenderedRow, RenderRow
from engine.store.atomic import write_text
from studio.core.plan import SampleData
from studio.core.text import teach as words
from studio.models.teach_draft import TeachDraft
from studio.views import a11y, theme
from studio.views.teach_problems import Problems
from studio.views.parts import CardButton, Column, OneOf, Row, button, card, clear, error_card, page, picture, text

PASTE_KEY = "teach.paste"
BEGIN, PASTE, LOADED = range(3)


class DataPage(QWidget):
    """Signals: `said(str)` for the status line, `failed(StudioError)`."""

    said = Signal(str)
    failed = Signal(object)

    def __init__(self, draft: TeachDraft, talk_bridge, settings, samples: list[SampleData]):
        super().__init__()
        self._draft, self._talk, self._settings = draft, talk_bridge, settings
        self._looking, self._rendering, self._row = 0, 0, 0
        self.setAcceptDrops(True)
        self._pages = QStackedWidget()
        for made in (self._begin_page(samples), self._paste_page(), self._loaded_page()):
            self._pages.addWidget(made)
        Column(self._pages, parent=self)
        self._later = QTimer(self, interval=250, singleShot=True)
        self._later.timeout.connect(self._render)
        draft.changed.connect(self._changed)
        theme.changed.connect(self._restyle)

    # --- the three pages ---

    def _begin_page(self, samples: list[SampleData]) -> QWidget:
        self.drop = QFrame()
        theme.look(self.drop, "drop")
        self.choose_button = button(words.DATA_CHOOSE(), self.choose, "primary")
        self.paste_button = button(words.DATA_PASTE(), self._open_paste)
        Column(Row(None, picture("data", "accent", 40), None), Row(None, text(words.DATA_DROP(), "heading", wrap=False), None),
               Row(None, text(words.DATA_KINDS(), "muted", wrap=False), None), theme.S,
               Row(None, self.choose_button, self.paste_button, None, spacing=theme.M), margin=theme.XXL, parent=self.drop)
        self._trouble = QVBoxLayout()
        self._trouble.setContentsMargins(0, 0, 0, 0)
        self.sample_buttons = []
        row = Row(spacing=theme.M)
        for sample in samples:
            made = CardButton(sample.title, text(sample.title, "strong"), text(sample.about, "muted"),
                              text(words.EXAMPLES(sample.rows), "muted small"),
                              description=sample.about)
            made.clicked.connect(lambda _=False, s=sample: self._use_sample(s))
            row.addWidget(made, 1)
            self.sample_buttons.append(made)
        return page(Column(text(words.DATA_HEAD(), "title"), text(words.DATA_INTRO(), "muted")), self._trouble, self.drop,
                    Column(text(words.DATA_SAMPLES(), "muted"), row), None)

    def _paste_page(self) -> QWidget:
        self.paste = QPlainTextEdit(self._settings.recall(PASTE_KEY, ""))
        self.paste.setTabChangesFocus(True)     # never a trap: tabs come with what is pasted
        self.paste.setPlaceholderText("question\tanswer\nWhen are you open?\tFrom seven to six, every day.")
        self.paste.setMinimumHeight(260)
        a11y.name(self.paste, words.DATA_PASTE_NAME(), words.DATA_PASTE_HEAD())
        self._keep_paste = QTimer(self, interval=600, singleShot=True)
        self._keep_paste.timeout.connect(lambda: self._settings.remember(PASTE_KEY, self.paste.toPlainText()[:200_000]))
        self.paste.textChanged.connect(self._keep_paste.start)
        self.use_paste = button(words.DATA_PASTE_USE(), self._use_paste, "primary")
        from studio.core.text import work
        return page(text(words.DATA_PASTE_NAME(), "title"), text(words.DATA_PASTE_HEAD(), "muted"), self.paste,
                    Row(self.use_paste, button(work.CANCEL(), lambda: self._pages.setCurrentIndex(BEGIN), "quiet"), None))

    def _loaded_page(self) -> QWidget:
        self.sentence = text("", "heading", selectable=True)
        self._file = a11y.ElidedLabel()
        theme.look(self._file, "muted small")
        self._held = text("", "muted")
        self.other_button = button(words.DATA_OTHER(), self._other)
        self._notes = text("", selectable=True)
        self._notes_card = card(Row(picture("info", "warn", 18), text(words.DATA_NOTES(), "strong", wrap=False), None), self._notes,
                                looks="notice-warn", margin=theme.M, spacing=theme.XS)
        self.problems = Problems(self._draft, self._talk)
        self.roles: dict[str, QComboBox] = {}
        self._roles = Row(spacing=theme.M)
        self._examples = QVBoxLayout()
        self._examples.setContentsMargins(0, 0, theme.S, 0)
        self._examples.setSpacing(theme.S)
        holder = QWidget()
        theme.look(holder, "page")
        holder.setLayout(Column(self._examples, None))
        from PySide6.QtWidgets import QScrollArea
        scroll = QScrollArea()
        scroll.setWidget(holder)
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.exact = QTextEdit()
        self.exact.setReadOnly(True)
        theme.look(self.exact, "mono plain")
        a11y.name(self.exact, words.DATA_EXACT(), words.DATA_EXACT_HELP())
        self.tokens = text("", "muted small")
        right = card(text(words.DATA_EXACT(), "strong"), text(words.DATA_EXACT_HELP(), "muted small"), self.exact, self.tokens)
        right.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        left = QWidget()
        Column(text(words.DATA_EXAMPLES(), "strong"), self._roles, scroll, parent=left)
        self._group = OneOf(self)
        whole = QWidget()
        head = Row(Column(self.sentence, self._held, self._file, spacing=theme.XS), self.other_button, spacing=theme.L)
        head.setStretch(0, 1)
        head.setAlignment(self.other_button, Qt.AlignmentFlag.AlignTop)
        columns = Row(left, right, spacing=theme.L)
        columns.setStretch(0, 1)
        columns.setStretch(1, 1)
        Column(head, self._notes_card, self.problems, columns, spacing=theme.L, margin=theme.XL, parent=whole).setStretch(3, 1)
        theme.look(whole, "page")
        return whole

    # --- what a person does ---

    def choose(self) -> None:
        """Ask for a file."""
        chosen, _ = QFileDialog.getOpenFileName(self, words.DATA_CHOOSE_TITLE(), self._settings.recall("teach.folder", ""),
                                                words.DATA_FILTER())
        if chosen:
            self._settings.remember("teach.folder", str(Path(chosen).parent))
            self.use(Path(chosen))

    def use(self, path: Path) -> None:
        """Teach from this file."""
        if self._draft.draft.data == str(path) and self._draft.report is None:
            self._look()                   # the same file once more: it may have been mended
        self._draft.put(data=str(path))

    def look_once(self) -> None:
        """Describe the draft's file if that was not done yet (a draft of an earlier day)."""
        if self._draft.draft.data and not self._looking:
            self._look()

    def _use_sample(self, sample: SampleData) -> None:
        self._draft.put(data=str(sample.path), prompts=self._draft.draft.prompts or sample.prompts[:3],
                        name=self._draft.draft.name or sample.title)

    def _open_paste(self) -> None:
        self._pages.setCurrentIndex(PASTE)
        self.paste.setFocus()

    def _use_paste(self) -> None:
        written = self.paste.toPlainText()
        if not written.strip():
            self.said.emit(words.NEEDS_DATA())
            return
        digest = hashlib.sha256(written.encode()).hexdigest()[:8]
        path = self._draft.home.root / "pasted" / f"pasted-{digest}.{kind_of(written)}"
        try:
            write_text(path, written)
        except OSError as error:
            self.failed.emit(explain(error))
            return
        self.use(path)

    def _other(self) -> None:
        self._pages.setCurrentIndex(BEGIN)
        self.choose_button.setFocus()

    def dragEnterEvent(self, event) -> None:   # noqa: N802 (Qt's names)
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            theme.look(self.drop, "drop-over")
            event.acceptProposedAction()

    def dragLeaveEvent(self, event) -> None:   # noqa: N802
        theme.look(self.drop, "drop")

    def dropEvent(self, event) -> None:    # noqa: N802
        theme.look(self.drop, "drop")
        local = [url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()]
        if local:
            event.acceptProposedAction()
            self.use(Path(local[0]))

    # --- what comes of it ---

    def _changed(self, part: str) -> None:
        if part in ("data", "roles", "edits"):
            self._look() if self._draft.draft.data else self._pages.setCurrentIndex(BEGIN)
        elif part == "base" and self._draft.report is not None:
            self.problems.look(self._draft.report)
            self._later.start()
        elif part in ("base", "overrides"):
            self._later.start()

    def _look(self) -> None:
        clear(self._trouble)
        self._talk.forget(self._looking)
        name = Path(self._draft.draft.data).name
        if self.isVisible():
            self.said.emit(words.DATA_READING(name=name))
        draft = self._draft.draft
        self._looking = self._talk.ask(DescribeData(draft.data, roles=draft.roles, edits=self._draft.edits,
                                                    holdout=draft.overrides.get("holdout", 0.1)), on_done=self._described, on_error=self._refused)

    def _described(self, report: DataReport) -> None:
        self.sentence.setText(report.sentence)
        self._file.setText(report.path)
        learned = report.rows - report.held_out
        self._held.setText(words.DATA_HELD(learned=learned, held=report.held_out) if report.held_out else "")
        self._held.setVisible(bool(report.held_out))
        self._notes.setText("\n".join(f"·  {note}" for note in report.notes))
        self._notes_card.setVisible(bool(report.notes))
        clear(self._examples)
        self._group.empty()
        for number, messages in enumerate(report.examples):
            made = self._bubbles(number, messages)
            self._examples.addWidget(made)
            self._group.addButton(made, number)
        self._row = 0
        if self._group.buttons():
            self._group.button(0).setChecked(True)
        self._pages.setCurrentIndex(LOADED)
        if self.isVisible():
            self.said.emit(report.sentence)
        self._draft.found(report)
        self._headers(report)
        self.problems.look(report)
        self._later.start()

    def _headers(self, report: DataReport) -> None:
        """Over the examples: each column with what it is, to be changed there."""
        clear(self._roles)
        self.roles = {}
        for column in report.columns[:6] if report.choices else ():
            made = QComboBox()
            for role in report.choices:
                made.addItem(words.DATA_ROLES[role](), role)
            made.setCurrentIndex(max(0, made.findData(report.roles.get(column, "ignore"))))
            made.activated.connect(lambda _, c=column, box=made: self._give_role(c, box.currentData()))
            a11y.name(made, words.DATA_ROLE(column=column))
            self.roles[column] = made
            self._roles.addLayout(Column(text(column, "muted small", wrap=False), made, spacing=theme.XS))

    def _give_role(self, column: str, role: str) -> None:
        """Two columns that are both the question or the answer make no sense: the other one takes this one's place."""
        roles = {name: self._draft.report.roles.get(name, "ignore") for name in self._draft.report.columns}
        other = next((name for name, its in roles.items() if its == role and name != column and role in ("question", "answer")), None)
        if other:
            roles[other] = roles[column]
        self._draft.put(roles={**roles, column: role})

    def _refused(self, error: StudioError) -> None:
        if self._draft.draft.roles:        # what was said of the columns does not work: as the file tells it
            self.failed.emit(error)
            self._draft.put(roles={})
            return
        clear(self._trouble)
        self._trouble.addWidget(error_card(error))
        self._pages.setCurrentIndex(BEGIN)
        self._draft.found(None, error)
        a11y.announce(self, error.what)

    def _bubbles(self, number: int, messages: list[dict]) -> CardButton:
        """One example as a small conversation that can be chosen."""
        said = " ".join(f"{_role(m)}: {m.get('content', '')}" for m in messages)
        made = CardButton(said[:300], spacing=theme.XS, margin=theme.S, checkable=True)
        theme.look(made, "card bubbles")
        for message in messages:
            role = message.get("role", "text")
            bubble = card(text(_short(str(message.get("content", "")))), margin=theme.S,
                          looks=f"bubble-{'user' if role != 'assistant' else role}")
            row = Row(*((theme.XXL, bubble) if role == "assistant" else (bubble, theme.XXL)))
            row.setStretch(row.indexOf(bubble), 1)
            made.layout().addLayout(row)
        for inner in made.findChildren(QWidget):
            inner.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        made.toggled.connect(lambda on, n=number: on and self._pick(n))
        return made

    def _restyle(self, *_: object) -> None:
        self._later.start()

    def _pick(self, number: int) -> None:
        self._row = number
        self._later.start()

    def _render(self) -> None:
        """Ask for the very text of the chosen example; without a model there is none yet."""
        self._talk.forget(self._rendering)
        draft = self._draft.draft
        if self._draft.report is None:
            return
        if not draft.base:
            self.exact.setPlainText("")
            self.tokens.setText(words.DATA_EXACT_NO_MODEL())
            return
        self.tokens.setText(words.DATA_LOOKING())
        settings = draft.overrides
        self._rendering = self._talk.ask(
            RenderRow(draft.data, roles=draft.roles, edits=self._draft.edits, base=draft.base, row=self._row,
                      max_length=settings.get("max_length", 1024), system=settings.get("system", "")),
            on_done=self._rendered, on_error=lambda error: self.tokens.setText(f"{error.what} {error.do}"))

    def _rendered(self, row: RenderedRow) -> None:
        t, cursor = theme.tokens(), self.exact.textCursor()
        self.exact.clear()
        cursor.movePosition(QTextCursor.MoveOperation.Start)
        for piece, learned in row.spans:
            form = QTextCharFormat()
            form.setForeground(QColor(t.text if learned else t.muted))
            if learned:
                form.setBackground(QColor(t.learned_mark))
                form.setFontUnderline(True)
            cursor.insertText(piece, form)
        self.exact.moveCursor(QTextCursor.MoveOperation.Start)
        if row.limit and row.tokens > row.limit:
            self.tokens.setText(words.DATA_TOO_LONG(tokens=row.tokens, limit=row.limit))
        elif not row.learned_tokens:
            self.tokens.setText(words.DATA_NOTHING_LEARNED())
        else:
            self.tokens.setText(words.DATA_TOKENS(tokens=row.tokens, limit=row.limit, learned=row.learned_tokens))


def kind_of(written: str) -> str:
    """The file kind of pasted text: json, jsonl, tsv, csv or txt."""
    lines = [line for line in written.strip().splitlines() if line.strip()]
    if lines[0].lstrip().startswith("["):
        return "json"
    if all(line.lstrip().startswith("{") and line.rstrip().endswith("}") for line in lines):
        return "jsonl"
    if "\t" in lines[0]:
        return "tsv"
    return "csv" if "," in lines[0] or ";" in lines[0] else "txt"


def _role(message: dict) -> str:
    role = message.get("role", "text")
    return words.ROLES[role]() if role in words.ROLES else str(role)


def _short(content: str, limit: int = 280) -> str:
    return content if len(content) <= limit else content[:limit].rstrip() + " …"
