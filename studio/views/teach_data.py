"""Teach, step 1: choose, drop or paste examples; see what was found, and exactly what the model will see of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from PySide6.QtCore import QTimer, Qt, Signal
from PySide6.QtGui import QColor, QTextCharFormat, QTextCursor
from PySide6.QtWidgets import (QApplication, QFileDialog, QFrame, QPlainTextEdit, QProgressBar, QSizePolicy, QSpinBox, QStackedWidget,
                               QTextEdit, QVBoxLayout, QWidget)

from engine import events
from engine.errors import StudioError, explain
from engine.specs import DataReport, DescribeData, RenderedRow, RenderRow
from engine.store.atomic import write_text
from studio.core.plan import SampleData
from studio.core.text import teach as words
from studio.core.text.spoken import spoken
from studio.models.examples_model import HEAD, ExamplesModel
from studio.models.teach_draft import TeachDraft
from studio.views import a11y, theme
from studio.views.examples_list import ExamplesList
from studio.views.flow import Turning
from studio.views.teach_columns import AskRoles, ColumnRoles
from studio.views.teach_problems import Problems
from studio.views.parts import CardButton, Column, Row, Scrolled, button, card, clear, error_card, page, picture, text

BEGIN, PASTE, LOADED = range(3)


class DataPage(QWidget):
    """Signals: `said(str)` for the status line, `failed(StudioError)`."""

    said = Signal(str)
    failed = Signal(object)

    def __init__(self, draft: TeachDraft, talk_bridge, settings, samples: list[SampleData]):
        super().__init__()
        self._draft, self._talk, self._settings = draft, talk_bridge, settings
        self._looking, self._rendering, self._row = 0, 0, 0
        self._holdout = 0.1                # the share that was held back when the file was described
        self._said: dict[str, str] = {}        # what a person said last of columns that were not understood
        self._report: DataReport | None = None         # what is shown: of a long file the head, until all is counted
        self.setAcceptDrops(True)
        self._samples, self._pages = samples, QStackedWidget()
        Column(self._pages, parent=self)
        self._later = QTimer(self, interval=250, singleShot=True)
        self._later.timeout.connect(self._render)

    # --- the three pages ---

    def build(self) -> Iterator[None]:
        """All that is on it, in short steps."""
        for make in (self._begin_page, self._paste_page, self._loaded_page):
            self._pages.addWidget(make())
            yield
        self._draft.changed.connect(self._changed)
        theme.changed.connect(self._restyle)

    def _begin_page(self) -> QWidget:
        self.drop = QFrame()
        theme.look(self.drop, "drop")
        self.choose_button = button(words.DATA_CHOOSE(), self.choose, "primary")
        self.folder_button = button(words.DATA_FOLDER(), self.choose_folder, help=words.DATA_FOLDER_HELP())
        self.paste_button = button(words.DATA_PASTE(), self._open_paste)
        head, kinds = text(words.DATA_DROP(), "heading"), text(words.DATA_KINDS(), "muted")
        for centred in (head, kinds):
            centred.setAlignment(Qt.AlignmentFlag.AlignCenter)
        ways = Turning(self.choose_button, self.folder_button, self.paste_button, spacing=theme.M)
        Column(Row(None, picture("data", "accent", 40), None), head, kinds, theme.S, Row(None, ways, None), margin=theme.XL, parent=self.drop)
        self._trouble = QVBoxLayout()
        self._trouble.setContentsMargins(0, 0, 0, 0)
        self._reading = card(looks="notice", margin=theme.M)
        self._opening = text("")
        self._reading.layout().addLayout(Column(self._opening, _endless(words.DATA_READING_NAME()), spacing=theme.S))
        self._reading.hide()
        self._soon = QTimer(self, interval=400, singleShot=True)       # what is there at once need not be told of
        self._soon.timeout.connect(self._reading.show)
        self.sample_buttons = []
        for sample in self._samples:
            made = CardButton(spoken(sample.title), text(spoken(sample.title), "strong"), text(spoken(sample.about), "muted"),
                              text(words.EXAMPLES(sample.rows), "muted small"),
                              description=spoken(sample.about))
            made.clicked.connect(lambda _=False, s=sample: self._use_sample(s))
            self.sample_buttons.append(made)
        return page(Column(text(words.DATA_HEAD(), "title"), text(words.DATA_INTRO(), "muted")), self._trouble, self._reading, self.drop,
                    Column(text(words.DATA_SAMPLES(), "muted"), Turning(*self.sample_buttons, spacing=theme.M, letters=26)), None)

    def _paste_page(self) -> QWidget:
        self._unfinished = self._draft.home.root / "pasting.txt"
        self._kept = self._unfinished.read_text(encoding="utf-8", errors="replace") if self._unfinished.is_file() else ""
        self.paste = QPlainTextEdit(self._kept)
        self.paste.setTabChangesFocus(True)     # never a trap: tabs come with what is pasted
        self.paste.setPlaceholderText(words.DATA_PASTE_HINT())
        self.paste.setMinimumHeight(260)
        a11y.name(self.paste, words.DATA_PASTE_NAME(), words.DATA_PASTE_HEAD())
        self._keep_paste = QTimer(self, interval=600, singleShot=True)
        self._keep_paste.timeout.connect(self.keep_paste)
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
        self._counted = text("", "muted", wrap=False)
        self._counting_bar = _endless(words.DATA_COUNTING_NAME())
        self._counting_bar.setMaximumWidth(220)
        self.stop_button = button(words.DATA_STOP(), self._stop_counting, "quiet", icon="stop", help=words.DATA_STOP_HELP())
        self.count_button = button(words.DATA_COUNT(), self._count, help=words.DATA_COUNT_HELP())
        self._counting = QWidget()
        Column(Row(self._counting_bar, self._counted, self.stop_button, self.count_button, None, spacing=theme.S), parent=self._counting)
        self._counting.hide()
        self.other_button = button(words.DATA_OTHER(), self._other)
        self._notes = text("", selectable=True)
        self._notes_card = card(Row(picture("info", "warn", 18), text(words.DATA_NOTES(), "strong", wrap=False), None), self._notes,
                                looks="notice-warn", margin=theme.M, spacing=theme.XS)
        self.problems = Problems(self._draft, self._talk)
        self.columns = ColumnRoles()
        self.columns.given.connect(lambda roles: self._draft.put(roles=roles))
        self.model = ExamplesModel(self._draft, self._talk, self)
        self.model.trouble.connect(self.failed)
        self.list = ExamplesList(self.model)
        self.list.picked.connect(self._pick)
        self.problems.show_row.connect(self.list.go)
        self.number = QSpinBox()
        self.number.setAlignment(Qt.AlignmentFlag.AlignRight)
        self.number.setKeyboardTracking(False)
        a11y.name(self.number, words.DATA_NUMBER(), words.DATA_NUMBER_HELP())
        a11y.quiet_wheel(self.number)
        self.number.valueChanged.connect(lambda number: self.list.go(number - 1))
        self._of = text("", "muted small", wrap=False)
        self.exact = QTextEdit()
        self.exact.setReadOnly(True)
        theme.look(self.exact, "mono plain")
        a11y.name(self.exact, words.DATA_EXACT(), words.DATA_EXACT_HELP())
        self.tokens = text("", "muted small")
        right = card(text(words.DATA_EXACT(), "strong"), text(words.DATA_EXACT_HELP(), "muted small"), self.exact, self.tokens)
        right.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        left = QWidget()
        Column(Row(text(words.DATA_EXAMPLES(), "strong", wrap=False), None, self.number, self._of), self.columns, self.list,
               parent=left).setStretch(2, 1)
        whole = QWidget()
        head = Row(Column(self.sentence, self._counting, self._held, self._file, spacing=theme.XS), self.other_button, spacing=theme.L)
        head.setStretch(0, 1)
        head.setAlignment(self.other_button, Qt.AlignmentFlag.AlignTop)
        Column(head, self._notes_card, self.problems, Turning(left, right), spacing=theme.L, margin=theme.XL, parent=whole).setStretch(3, 1)
        theme.look(whole, "page")
        self.list.setMinimumHeight(180)
        self.exact.setMinimumHeight(100)
        return Scrolled(whole)

    # --- what a person does ---

    def choose(self) -> None:
        """Ask for a file."""
        chosen, _ = QFileDialog.getOpenFileName(self, words.DATA_CHOOSE_TITLE(), self._settings.recall("teach.folder", ""),
                                                words.DATA_FILTER())
        if chosen:
            self._settings.remember("teach.folder", str(Path(chosen).parent))
            self.use(Path(chosen))

    def choose_folder(self) -> None:
        """Ask for a folder of files."""
        chosen = QFileDialog.getExistingDirectory(self, words.DATA_FOLDER_TITLE(), self._settings.recall("teach.folder", ""))
        if chosen:
            self._settings.remember("teach.folder", chosen)
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
        self._draft.put(data=str(sample.path), prompts=self._draft.own_prompts or sample.prompts[:3],
                        name=self._draft.draft.name or sample.title)

    def keep_paste(self) -> None:
        """Write down what stands in the paste box, if it was not yet."""
        self._keep_paste.stop()
        if (written := self.paste.toPlainText()) == self._kept:
            return
        try:
            write_text(self._unfinished, written)
            self._kept = written
        except OSError as error:
            self.failed.emit(explain(error))

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
        if len(local) > 1:
            self.said.emit(words.DATA_ONE_ONLY())
        elif local:
            event.acceptProposedAction()
            self.use(Path(local[0]))

    # --- what comes of it ---

    def _changed(self, part: str) -> None:
        if part in ("data", "roles") and self._draft.draft.data:
            self._look()
        elif part == "edits" and self._draft.report is not None:
            self._count()                  # all of it was read already
        elif part == "edits" and self._draft.draft.data:
            self._look()
        elif part in ("data", "roles", "edits"):
            self._talk.forget(self._looking)
            self._opened()
            self._pages.setCurrentIndex(BEGIN)
        elif part == "base" and self._draft.report is not None:
            self.problems.look(self._draft.report)
            self._later.start()
        elif part in ("base", "overrides"):
            if self._draft.report is not None and self._share() != self._holdout:
                self._count()              # more or fewer of them are learned now
            self._later.start()

    def _look(self) -> None:
        """Read the head; it says whether that is all."""
        clear(self._trouble)
        said = words.DATA_READING(name=Path(self._draft.draft.data).name)
        self._opening.setText(said)
        self._soon.start()
        if self.isVisible():
            self.said.emit(said)
        self._describe(HEAD)

    def _count(self) -> None:
        """Read all, while the first rows stand there."""
        self._show_counting(True)
        self._describe(0)

    def _stop_counting(self) -> None:
        self._talk.forget(self._looking)
        self._show_counting(False)
        self.count_button.setFocus()

    def _describe(self, head: int) -> None:
        self._talk.forget(self._looking)
        draft, self._holdout = self._draft.draft, self._share()
        self._looking = self._talk.ask(DescribeData(draft.data, roles=draft.roles, edits=self._draft.edits, head=head,
                                                    holdout=self._holdout),
                                       on_event=self._told, on_done=self._described, on_error=self._refused)

    def _share(self) -> float:
        return self._draft.draft.overrides.get("holdout", 0.1)

    def _opened(self) -> None:
        self._soon.stop()
        self._reading.hide()

    def _show_counting(self, on: bool) -> None:
        self._counting.setVisible(self._report is not None and not self._report.whole)
        for part in (self._counting_bar, self.stop_button):
            part.setVisible(on)
        self.count_button.setVisible(not on)
        self._counted.setText(words.DATA_COUNTING() if on else words.DATA_COUNT_STOPPED())

    def _told(self, event: events.Event) -> None:
        """A long file: what was found so far."""
        if isinstance(event, events.Progress) and self._report is not None and not self._report.whole:
            self.sentence.setText(words.DATA_SO_FAR(found=spoken(event.stage)))

    def _described(self, report: DataReport) -> None:
        shown, self._report = self._report, report
        self._opened()
        found = spoken(report.sentence)
        self.sentence.setText(found if report.whole else words.DATA_SO_FAR(found=found))
        self._file.setText(report.path)
        learned = report.rows - report.held_out
        self._held.setText(words.DATA_HELD(learned=learned, held=report.held_out) if report.held_out else "")
        self._held.setVisible(bool(report.held_out))
        self._notes.setText("\n".join(f"·  {spoken(note)}" for note in report.notes))
        self._notes_card.setVisible(bool(report.notes))
        arriving = self._pages.currentIndex() != LOADED and self._pages.isAncestorOf(QApplication.focusWidget())
        self._pages.setCurrentIndex(LOADED)
        if arriving:                       # who pressed a button that is gone now goes on among the examples
            self.list.setFocus()
        if self.isVisible():
            self.said.emit(self.sentence.text())
        self._draft.found(report)
        self.number.setRange(1, max(1, report.rows))
        self._of.setText(words.DATA_OF(n=report.rows) if report.whole else words.DATA_OF_FIRST(n=report.rows))
        self._show_counting(not report.whole)
        self.problems.setVisible(report.whole)
        if report.whole and shown is not None and not shown.whole and shown.path == report.path and shown.examples == report.examples:
            self.list.grow(report)         # what is looked at stays
        else:
            self._row = 0
            self.columns.show_report(report)
            self.list.show_report(report)
        if report.whole:
            self.problems.look(report)
        else:
            self._count()
        self._later.start()

    def _refused(self, error: StudioError) -> None:
        self._opened()
        self._report = None
        if self._draft.draft.roles:        # what was said of the columns does not work: as the file tells it
            self.failed.emit(error)
            self._draft.put(roles={})
            return
        clear(self._trouble)
        self._trouble.addWidget(error_card(error))
        columns, samples = error.facts.get("columns"), error.facts.get("samples")
        if columns and samples:            # the file need not be changed: a person can say what it does not
            self.ask = AskRoles(columns, samples, self._said)
            self.ask.given.connect(self._say_roles)
            self._trouble.addWidget(self.ask)
        self._pages.setCurrentIndex(BEGIN)
        self._draft.found(None, error)
        a11y.announce(self, spoken(error.what))

    def _say_roles(self, roles: dict[str, str]) -> None:
        self._said = roles
        self._draft.put(roles=roles)

    def _restyle(self, *_: object) -> None:
        self.list.viewport().update()
        self._later.start()

    def _pick(self, number: int) -> None:
        self._row = number
        self.number.blockSignals(True)
        self.number.setValue(number + 1)
        self.number.blockSignals(False)
        self._later.start()

    def _render(self) -> None:
        """Ask for the very text of the chosen example; without a model there is none yet."""
        self._talk.forget(self._rendering)
        draft = self._draft.draft
        if self._report is None:
            return
        if not draft.base:
            self.exact.setPlainText("")
            self.tokens.setText(words.DATA_EXACT_NO_MODEL())
            return
        self.tokens.setText(words.DATA_LOOKING())
        settings = draft.overrides
        self._rendering = self._talk.ask(
            RenderRow(draft.data, roles=draft.roles, edits=self._draft.edits, base=draft.base, row=self._row,
                      head=0 if self._report.whole else HEAD,
                      max_length=settings.get("max_length", 1024), system=settings.get("system", "")),
            on_done=self._rendered, on_error=lambda error: self.tokens.setText(spoken(error.what, error.do)))

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


def _endless(name: str) -> QProgressBar:
    """A bar for what has no known end."""
    bar = QProgressBar()
    bar.setRange(0, 0)
    bar.setTextVisible(False)
    a11y.name(bar, name)
    return bar


def kind_of(written: str) -> str:
    """The file kind of pasted text: json, jsonl, tsv, csv or txt."""
    lines = [line for line in written.strip().splitlines() if line.strip()]
    if all(line.lstrip().startswith("{") and line.rstrip().endswith("}") for line in lines):
        return "jsonl"
    if re.match(r"\s*[\[{]\s*[\[{\"]", written):
        return "json"
    if "\t" in lines[0]:
        return "tsv"
    chat = re.match(r"\[?\d+[./-]\d+[./-]\d+,? ", lines[0])
    return "csv" if not chat and re.search(r';[\w"¿¡]|[^\s\d],[^\s\d]|",', lines[0]) else "txt"     # in a sentence a blank follows the sign
