"""Bake the stack into one model: what, where, which number format; progress by tensor; then the proof that it is what was heard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PySide6.QtCore import Signal, QTimer, QUrl
from PySide6.QtGui import QDesktopServices
from PySide6.QtWidgets import QFileDialog, QLineEdit, QPlainTextEdit, QProgressBar, QStackedWidget, QVBoxLayout, QWidget

from engine import events
from engine.errors import StudioError
from engine.specs import ExportSpec
from engine.store.home import safe_name
from studio.core.text import amounts, number
from studio.core.text import work as words
from studio.core.text.spoken import spoken
from studio.jobs.job import Job, State
from studio.views import a11y, theme
from studio.views.parts import Column, Fold, Panel, Row, button, card, clear, error_card, page, picture, text

FORMATS = ("same", "float32", "bfloat16", "float16")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CHOOSE, RUN, RESULT = range(3)


class ExportPanel(Panel):
    """Signals: `said(str)`, `failed(StudioError)`, `library_changed()`."""

    library_changed = Signal()

    def __init__(self, home, document, catalogue, queue_bridge):
        super().__init__(words.EXPORT_TITLE())
        self._document, self._catalogue, self._queue = document, catalogue, queue_bridge
        self._folder = Path(home.exports)
        self._named_by_hand = False
        self.job: Job | None = None
        self.checks: list[events.Checked] = []
        self._pages = QStackedWidget()
        for made in (self._choose_page(), self._run_page(), self._result_page()):
            self._pages.addWidget(made)
        Column(self._pages, parent=self)
        self._later = QTimer(self, interval=150, singleShot=True)
        self._later.timeout.connect(self.refresh)
        document.changed.connect(lambda _: self._later.start())
        catalogue.subscribe(self._later.start)
        queue_bridge.changed.connect(self._job_changed)
        queue_bridge.event.connect(self._heard)
        self.refresh()
        self._pick_up()

    def _choose_page(self) -> QWidget:
        self._what = QVBoxLayout()
        self._what.setSpacing(theme.XS)
        self.name = QLineEdit()
        self.name.setMaxLength(80)
        a11y.name(self.name, words.EXPORT_NAME())
        self.name.textEdited.connect(self._name_typed)
        self._name_fault = text("", "bad small")
        self._where = a11y.ElidedLabel(str(self._folder))
        self.choose = button(words.EXPORT_CHOOSE(), self._choose_folder, help=words.EXPORT_CHOOSE_TITLE())
        self.format = a11y.Choice(24)
        for key in FORMATS:
            self.format.addItem("", key)
        a11y.name(self.format, words.EXPORT_FORMAT())
        self.format.currentIndexChanged.connect(lambda _: self._later.start())
        self._size = text("", "muted")
        self.questions = QPlainTextEdit(words.EXPORT_QUESTION())
        self.questions.setFixedHeight(72)
        self.questions.setTabChangesFocus(True)
        a11y.name(self.questions, words.EXPORT_QUESTIONS(), words.EXPORT_QUESTIONS_HELP())
        inside = QWidget()
        Column(text(words.EXPORT_QUESTIONS_HELP(), "muted small"), self.questions, parent=inside)
        self._fold = Fold(words.EXPORT_QUESTIONS(), inside)
        self.go = button(words.EXPORT_GO(), self.submit, "primary big", icon="export")
        self._needs = text("", "muted")
        self._trouble = QVBoxLayout()
        where = Row(self._where, self.choose)
        where.setStretch(0, 1)
        return page(Column(text(words.EXPORT_HEAD(), "title"), text(words.EXPORT_INTRO(), "muted")),
                    card(text(words.EXPORT_WHAT(), "strong"), self._what),
                    card(_labelled(words.EXPORT_NAME(), self.name), self._name_fault, text(words.EXPORT_WHERE(), "strong"), where,
                         _labelled(words.EXPORT_FORMAT(), self.format), self._size, spacing=theme.S),
                    self._fold, self._trouble, Row(self.go, self._needs, None, spacing=theme.L), None)

    def _run_page(self) -> QWidget:
        self._running_head, self._stage = text("", "title"), text("", "muted")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.cancel = button(words.CANCEL(), self._cancel, icon="stop")
        self._live = QVBoxLayout()
        self._live.setSpacing(theme.XS)
        return page(self._running_head, card(self._stage, self.bar, self._live, spacing=theme.M), Row(self.cancel, None), None)

    def _result_page(self) -> QWidget:
        self._mark = picture("check", "good", 32)
        self.result_head, self._facts, self._receipt = text("", "title"), text("", "muted", selectable=True), text("", "muted small",
                                                                                                                   selectable=True)
        self._rows = QVBoxLayout()
        self._rows.setSpacing(theme.S)
        self._samples = QVBoxLayout()
        self._samples.setSpacing(theme.M)
        self._samples_card = card(text(words.EXPORT_SAMPLES(), "strong"), self._samples)
        self._result_trouble = QVBoxLayout()
        self.open_folder = button(words.OPEN_FOLDER(), self._open_folder, "primary", icon="folder")
        self.another = button(words.EXPORT_ANOTHER(), self._again)
        head = Row(self._mark, self.result_head, spacing=theme.M)
        head.setStretch(1, 1)
        self._checks_card = card(text(words.EXPORT_CHECKS(), "strong"), self._rows)
        return page(Column(head, self._facts, self._receipt, spacing=theme.XS), Row(self.open_folder, self.another, None),
                    self._result_trouble, self._checks_card,
                    self._samples_card, None)

    # --- choosing ---

    def refresh(self) -> None:
        """Show the stack in words, the size, and what is still in the way."""
        clear(self._what)
        document = self._document
        model = self._catalogue.model(document.base) if document.base else None
        if document.base is not None:
            self._what.addWidget(text(words.EXPORT_BASE(name=model.name if model else Path(document.base).name)))
        for entry in document.entries:
            heard = entry.enabled and entry.strength
            strength = amounts.percent(entry.strength)
            line = words.EXPORT_ENTRY(name=entry.name, strength=strength) if heard else words.EXPORT_OFF(name=entry.name)
            self._what.addWidget(text(f"{'+' if heard else '–'}  {line}", "" if heard else "muted"))
        for index, key in enumerate(FORMATS):
            self.format.setItemText(index, words.EXPORT_FORMATS[key](dtype=_dtype(model)))
        if not self._named_by_hand:
            self.name.setText(self._suggestion(model))
        if not self.questions.document().isModified():
            self.questions.setPlainText("\n".join(self._pinned() or [words.EXPORT_QUESTION()]))
        self._judge(model)

    def _pinned(self) -> list[str]:
        """The questions that the stack's adapters were taught beside, a few of each."""
        found: dict[str, None] = {}
        for entry in self._document.heard():
            adapter = self._catalogue.adapter(entry.adapter)
            spec = adapter.recipe.get("spec") if adapter is not None else None
            prompts = spec.get("prompts") if isinstance(spec, dict) else None
            found |= dict.fromkeys(str(p) for p in (prompts if isinstance(prompts, list) else [])[:2])
        return list(found)[:4]

    def _suggestion(self, model) -> str:
        heard = [entry.name for entry in self._document.heard()]
        if not heard:
            return ""
        stem, number = safe_name(" ".join(heard[:2])), 2
        name = stem
        while (self._folder / safe_name(name)).exists():
            name, number = f"{stem}-{number}", number + 1
        return name

    def _judge(self, model) -> None:
        size, free = self._bytes(model), _free(self._folder)
        name = self.name.text().strip()
        self._size.setText(words.EXPORT_SIZE(size=amounts.size(size), free=amounts.size(free)) if model else "")
        self._size.setVisible(model is not None)
        needs = ""
        if self._document.base is None:
            needs = words.EXPORT_NO_BASE()
        elif not self._document.heard():
            needs = words.EXPORT_EMPTY()
        elif size and size * 1.02 > free:
            needs = words.EXPORT_NO_ROOM(size=amounts.size(size), free=amounts.size(free))
        fault = words.EXPORT_TAKEN(name=name) if name and (self._folder / safe_name(name)).exists() else ""
        if not needs and not name:
            fault = words.EXPORT_NO_NAME()
        self._name_fault.setText(fault)
        self._name_fault.setVisible(bool(fault))
        theme.look(self.name, "wrong" if fault else "")
        self._needs.setText(needs or fault)
        self.go.setEnabled(not needs and not fault)
        self.go.setToolTip(needs or fault)

    def _bytes(self, model) -> int:
        if model is None:
            return 0
        each = BYTES.get(self.format.currentData())
        weights = sum(tensor.end - tensor.start for file in model.headers for tensor in file.tensors.values())
        return model.bytes + (0 if each is None else model.parameters * each - weights)

    def _name_typed(self, _: str) -> None:
        self._named_by_hand = True
        self._judge(self._catalogue.model(self._document.base) if self._document.base else None)

    def _choose_folder(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, words.EXPORT_CHOOSE_TITLE(), str(self._folder))
        if chosen:
            self._folder = Path(chosen)
            self._where.setText(chosen)
            self.refresh()

    def submit(self) -> None:
        """Put the export into the queue."""
        clear(self._trouble)
        if not self.go.isEnabled():
            self.said.emit(self._needs.text())
            return
        name = self.name.text().strip()
        spec = ExportSpec(base=str(self._document.base), out=str(self._folder / safe_name(name)), stack=self._document.to_specs(),
                          dtype=self.format.currentData(), prompts=[line.strip() for line in self.questions.toPlainText().splitlines()
                                                                    if line.strip()])
        try:
            self._follow(self._queue.queue.submit(spec, words.EXPORT_JOB(name=name)))
        except StudioError as error:
            self._trouble.addWidget(error_card(error))

    # --- running ---

    def _pick_up(self) -> None:
        """An export that still runs or waits when the window opens is shown at once."""
        for job in self._queue.queue.jobs():
            if isinstance(job.spec, ExportSpec) and job.active:
                self._follow(job)

    def _follow(self, job: Job) -> None:
        self.job = job
        self.checks.clear()
        clear(self._live)
        self._running_head.setText(words.EXPORT_RUNS(name=Path(job.spec.out).name))
        self._stage.setText(words.START_WAITS())
        self.bar.setRange(0, 0)
        a11y.name(self.bar, self._running_head.text())
        self.cancel.setEnabled(True)
        self._pages.setCurrentIndex(RUN)

    def _heard(self, id: int, event: events.Event) -> None:
        if self.job is None or id != self.job.id:
            return
        if isinstance(event, events.Progress):
            amount = f"{number(event.done, 0)} / {number(event.total, 0)} {event.unit}" if event.total and event.unit != "bytes" else ""
            self._stage.setText("  ·  ".join(part for part in (spoken(event.stage), amount, amounts.left(event.seconds_left)) if part))
            self.bar.setRange(0, 1000 if event.total else 0)
            self.bar.setValue(round(1000 * event.done / event.total) if event.total else 0)
        elif isinstance(event, events.Checked):
            self.checks.append(event)
            self._live.addWidget(check_row(event))

    def _job_changed(self, job: Job) -> None:
        if self.job is None or job.id != self.job.id:
            return
        self.job = job
        if job.state is State.FINISHED:
            self._show_result(job)
        elif job.state is State.RUNNING or job.state is State.WAITING:
            return
        elif job.state is State.FAILED and self.checks:
            self._show_result(job)
        else:
            self._pages.setCurrentIndex(CHOOSE)
            clear(self._trouble)
            if job.error:
                self._trouble.addWidget(error_card(StudioError.from_dict(job.error)))
            self.refresh()

    def _cancel(self) -> None:
        self.cancel.setEnabled(False)
        try:
            self._queue.queue.cancel(self.job.id)
        except StudioError as error:
            self.failed.emit(error)

    # --- the proof ---

    def _show_result(self, job: Job) -> None:
        result = job.result or {}
        verified, failed = bool(result.get("verified")), job.state is State.FAILED
        self.result_head.setText(words.EXPORT_NOT_VERIFIED() if failed else words.EXPORT_VERIFIED() if verified
                                 else words.EXPORT_UNVERIFIED())
        theme.look(self.result_head, f"title {'bad' if failed else 'good' if verified else 'warn'}")
        self._mark._what = ("error", "bad") if failed else ("check", "good") if verified else ("warning", "warn")
        self._mark.retint()
        self._facts.setText(words.EXPORT_RESULT(path=result["path"], size=amounts.size(result.get("bytes", 0)),
                                                time=amounts.duration(result.get("seconds", 0)))
                            if result.get("path") else "")
        self._receipt.setText(words.EXPORT_RECEIPT(path=result["receipt"]) if result.get("receipt") else "")
        clear(self._result_trouble)
        if failed and job.error:
            self._result_trouble.addWidget(error_card(StudioError.from_dict(job.error)))
        clear(self._rows)
        for check in self.checks:
            self._rows.addWidget(check_row(check))
        self._checks_card.setVisible(bool(self.checks))
        self._show_samples(Path(result["receipt"]) if result.get("receipt") else None)
        self.open_folder.setEnabled(bool(result.get("path")))
        self._pages.setCurrentIndex(RESULT)
        self.said.emit(self.result_head.text())
        a11y.announce(self, self.result_head.text())
        self.library_changed.emit()

    def _show_samples(self, receipt: Path | None) -> None:
        clear(self._samples)
        try:
            samples = json.loads(receipt.read_text(encoding="utf-8")).get("samples", []) if receipt else []
        except (OSError, ValueError):
            samples = []                   # the proof stands in the checks; the samples are only its illustration
        for sample in samples:
            answer = str(sample.get("export") or sample.get("stack") or "").strip()
            self._samples.addLayout(Column(text(str(sample.get("question", "")), "strong"),
                                           card(text(answer or "…", selectable=True), looks="bubble-assistant", margin=theme.M)))
        self._samples_card.setVisible(bool(samples))

    def _open_folder(self) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile((self.job.result or {}).get("path", "")))

    def _again(self) -> None:
        self.job, self._named_by_hand = None, False
        self._pages.setCurrentIndex(CHOOSE)
        self.refresh()


def check_row(check: events.Checked) -> QWidget:
    """✓ or ✗ with the sentence; the mark is a word too, for those who do not see it."""
    row = QWidget()
    mark = text("✓" if check.passed else "✗", "strong good" if check.passed else "strong bad", wrap=False)
    mark.setFixedWidth(max(20, mark.sizeHint().width()))
    mark.setAccessibleName(words.EXPORT_PASSED() if check.passed else words.EXPORT_MISSED())
    line = Row(mark, text(spoken(check.sentence), selectable=True), parent=row)
    line.setStretch(1, 1)
    a11y.name(row, f"{mark.accessibleName()}: {spoken(check.sentence)}")
    return row


def _labelled(label: str, editor: QWidget) -> Column:
    title = text(label, "strong")
    title.setBuddy(editor)
    return Column(title, editor, spacing=theme.XS)


def _dtype(model) -> str:
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    return names.get(model.dtype, model.dtype) if model else "–"


def _free(folder: Path) -> int:
    """Bytes free on the disk of a folder that may not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
