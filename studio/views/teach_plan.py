"""Teach, step 3: the skill's name, three presets with their measured price, pinned questions, and every knob under *Advanced*."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from PySide6.QtCore import QTimer, Signal
from PySide6.QtWidgets import QLineEdit, QPlainTextEdit, QVBoxLayout, QWidget

from engine.errors import StudioError
from engine.specs import DescribeMethods, EstimatePlan, MethodsReport, PlanReport, TrainSpec, describe_fields
from studio.core import methods, plan
from studio.core.text import teach as words
from studio.core.text.spoken import spoken, spoken_setting
from studio.models.teach_draft import TeachDraft
from studio.views import a11y, theme
from studio.views.form import Form
from studio.views.method_cards import MethodCards
from studio.views.flow import Flow
from studio.views.parts import CardButton, Column, Fold, OneOf, Row, button, card, clear, error_card, fill, page, text
from studio.views.speed_finder import SpeedFinder

CHOSEN_ELSEWHERE = ("base", "data", "roles", "edits", "out", "method", "method_config", "prompts")


class PlanPage(QWidget):
    """Signals: `said(str)`, `failed(StudioError)`, `started(Job)`."""

    said = Signal(str)
    failed = Signal(object)
    started = Signal(object)

    def __init__(self, draft: TeachDraft, talk_bridge, queue_bridge):
        super().__init__()
        self._draft, self._talk, self._queue = draft, talk_bridge, queue_bridge
        self._known: dict[str, tuple[TrainSpec, PlanReport]] = {}      # preset → what was measured, and its price
        self._asked: dict[str, tuple[TrainSpec, int]] = {}             # preset → what is being measured, and the ticket
        self._unpriced: dict[str, str] = {}    # preset → why its price is not known
        self._methods: list[dict] | None = None                        # of a `MethodsReport`, as soon as somebody wanted to see them
        self._method_form: Form | None = None
        self._later = QTimer(self, interval=500, singleShot=True)
        self._later.timeout.connect(self._ask_prices)

    def build(self) -> Iterator[None]:
        """All that is on it, in short steps."""
        area, foot = page(text(words.PLAN_HEAD(), "title")), QWidget()
        Column(area, foot, spacing=0, parent=self)
        content = area.content.layout()
        for make in (self._name_parts, self._preset_parts, self._method_parts, self._prompt_parts, self._advanced_parts):
            for items in make():
                fill(content, items)
                yield
        self._trouble = QVBoxLayout()
        fill(content, (self._trouble, None))
        self.start = button(words.PLAN_START(), self.submit, "primary big", icon="teach")
        self._needs = text("", "muted")
        Row(self._needs, self.start, spacing=theme.L, margin=theme.M, parent=foot).setStretch(0, 1)
        self._draft.changed.connect(self._changed)
        self._show_draft()

    # Each of these hands out what comes next on the page, and fills a fold when it stands there: Qt restyles all that is in a widget which moves.

    def _name_parts(self) -> Iterator[tuple]:
        self.name = QLineEdit()
        self.name.setPlaceholderText(words.PLAN_NAME_HINT())
        self.name.setMaxLength(80)
        a11y.name(self.name, words.PLAN_NAME(), words.PLAN_NAME_HELP())
        self.name.textEdited.connect(lambda typed: self._draft.put(name=typed))
        self._name_fault = text("", "bad small")
        label = text(words.PLAN_NAME(), "strong")
        label.setBuddy(self.name)
        yield (Column(label, self.name, self._name_fault, spacing=theme.XS),)

    def _preset_parts(self) -> Iterator[tuple]:
        self.cards: dict[str, CardButton] = {}
        self.price_labels = {}
        self._group = OneOf(self)
        presets = Column(spacing=theme.S)
        for key in plan.PRESETS:
            price = text("", "muted small")
            made = CardButton(words.PRESETS[key](), text(words.PRESETS[key](), "strong"), text(words.PRESET_HELP[key](), "small"), price,
                              description=words.PRESET_HELP[key](), checkable=True)
            made.toggled.connect(lambda on, k=key: on and self._draft.replace(plan.with_preset(self._draft.draft, k)))
            self._group.addButton(made)
            self.cards[key], self.price_labels[key] = made, price
            presets.addWidget(made)
        self._warning = text("", "warn")
        self._remedies = Flow()
        yield presets, Column(self._warning, self._remedies)

    def _method_parts(self) -> Iterator[tuple]:
        inside = theme.look(QWidget(), "page")
        self.method_fold = Fold("", inside)
        self.method_fold.toggled.connect(lambda on: on and self._ask_methods())
        yield (card(self.method_fold, margin=theme.S),)
        column = Column(text(words.PLAN_METHOD_CARDS_HELP(), "muted"), spacing=theme.M, margin=theme.M, parent=inside)
        self.method_cards = MethodCards()
        self.method_cards.chosen.connect(lambda choice: self._draft.replace(plan.with_method(self._draft.draft, choice)))
        column.addWidget(self.method_cards)
        yield ()

    def _prompt_parts(self) -> Iterator[tuple]:
        self.prompts = QPlainTextEdit()
        self.prompts.setFixedHeight(84)
        self.prompts.setTabChangesFocus(True)
        a11y.name(self.prompts, words.PLAN_PROMPTS(), words.PLAN_PROMPTS_HELP())
        self.prompts.textChanged.connect(lambda: self._draft.put(prompts=self.prompts.toPlainText().splitlines()))
        yield (Column(text(words.PLAN_PROMPTS(), "strong"), text(words.PLAN_PROMPTS_HELP(), "muted small"), self.prompts, spacing=theme.XS),)

    def _advanced_parts(self) -> Iterator[tuple]:
        inside = theme.look(QWidget(), "page")
        self.advanced = Fold(words.PLAN_ADVANCED_NONE(), inside)
        self.advanced.toggled.connect(lambda on: on and self._ask_methods())
        yield (card(self.advanced, margin=theme.S),)
        column = Column(spacing=theme.M, margin=theme.M, parent=inside)
        self.form = Form(describe_fields(TrainSpec), leave_out=CHOSEN_ELSEWHERE, folded=words.PLAN_SPEC_FORM())
        self.form.changed.connect(lambda _: self._edited(overrides=self.form.different()))
        column.addWidget(self.form)
        yield ()
        self._method_place = QVBoxLayout()
        self._method_title = text(words.PLAN_METHOD_FORM(method="LoRA"), "heading")
        self.reset = button(words.PLAN_RESET(), self._reset, "link")
        self.finder = SpeedFinder(self._draft, self._queue, lambda: self._spec_of(self._draft.draft.preset))
        self.finder.said.connect(self.said)
        self.finder.failed.connect(self.failed)
        column.insertWidget(0, self.finder)
        column.insertSpacing(1, theme.S)
        fill(column, (theme.S, self._method_title, self._method_place, Row(self.reset, None)))
        yield ()

    # --- draft → page ---

    def _show_draft(self) -> None:
        draft = self._draft.draft
        if self.name.text() != draft.name:
            self.name.setText(draft.name)
        self.cards[draft.preset].setChecked(True)
        self._show_method()
        if self.prompts.toPlainText().splitlines() != draft.prompts:
            self.prompts.blockSignals(True)
            self.prompts.setPlainText("\n".join(draft.prompts))
            self.prompts.blockSignals(False)
        self._show_defaults()
        self.form.put(draft.overrides)
        self._show_state()
        self._later.start()

    def _show_defaults(self) -> None:
        preset = self._draft.draft.preset
        self.form.set_defaults(plan.preset_spec(preset, self._draft.learned_rows))
        if self._method_form is not None:
            self._method_form.set_defaults(plan.preset_method(preset, self._draft.draft.method))

    def _show_settings(self) -> None:
        """Bring the forms to what the draft says, if somebody else has changed it."""
        draft = self._draft.draft
        forms = [(self.form, draft.overrides), *([(self._method_form, draft.method_overrides)] if self._method_form else [])]
        for form, wanted in forms:
            if form.different() != wanted:
                form.put(self._defaults_of(form) | wanted)

    def _show_state(self) -> None:
        missing = self._draft.missing()
        needed = [missing[step] for step in ("data", "model", "plan") if step in missing]
        faults = self.form.problems() | (self._method_form.problems() if self._method_form else {})
        self.start.setEnabled(not needed and not faults)
        self.finder.allow(not faults and not {"data", "model"} & set(missing))
        self._needs.setText("  ".join(needed or list(faults.values())[:1]))
        self.start.setToolTip(self._needs.text())
        taken = missing.get("plan", "") if self.name.text().strip() else ""
        self._name_fault.setText(taken)
        self._name_fault.setVisible(bool(taken))
        theme.look(self.name, "wrong" if taken else "")
        count = len(self._draft.draft.overrides) + len(self._draft.draft.method_overrides)
        self.advanced.set_title(words.PLAN_ADVANCED_COUNT(count) if count else words.PLAN_ADVANCED_NONE())
        self.reset.setEnabled(bool(count))

    def _changed(self, part: str) -> None:
        if part in ("name", "prompts", "preset") or part == "report":
            self._show_draft_part(part)
            if part == "prompts":          # to answer them takes time
                self._later.start()
        elif part == "method":
            self._show_method()
            self._later.start()
        elif part in ("data", "base", "overrides", "method_overrides"):
            self._show_settings()
            self._later.start()
        self._show_prices()
        self._show_state()

    def _show_draft_part(self, part: str) -> None:
        draft = self._draft.draft
        if part == "name" and self.name.text() != draft.name:
            self.name.setText(draft.name)
        elif part == "prompts" and self.prompts.toPlainText().splitlines() != draft.prompts:
            self.prompts.blockSignals(True)
            self.prompts.setPlainText("\n".join(draft.prompts))
            self.prompts.blockSignals(False)
        elif part == "preset":
            self.cards[draft.preset].setChecked(True)
            self._show_defaults()
            self._later.start()
        elif part == "report":
            self._show_defaults()
            self._later.start()

    def showEvent(self, event) -> None:    # noqa: N802 (Qt's name)
        super().showEvent(event)
        self._show_state()
        self._later.start()

    # --- prices ---

    def _ask_prices(self) -> None:
        """Measure the chosen preset first, the others after it; only while somebody looks."""
        draft = self._draft.draft
        if not self.isVisible() or self._draft.report is None or not draft.base:
            self._show_prices()
            return
        for key in sorted(plan.PRESETS, key=lambda k: k != draft.preset):
            spec = self._spec_of(key)
            if self._price(key) is not None or spec.problems() or (key in self._asked and self._asked[key][0] == spec):
                continue
            self._unpriced.pop(key, None)
            if key in self._asked:
                self._talk.forget(self._asked[key][1])
            self._asked[key] = spec, self._talk.ask(EstimatePlan(spec), on_done=lambda report, k=key, s=spec: self._priced(k, s, report),
                                                    on_error=lambda error, k=key: self._no_price(k, error))
        self._show_prices()

    def _spec_of(self, preset: str) -> TrainSpec:
        """The draft with another preset; without its name, and of its questions only how many: that changes the price."""
        draft = plan.with_preset(self._draft.draft, preset)
        draft = replace(draft, name="unnamed", prompts=["?" for asked in draft.prompts if asked.strip()])
        return plan.to_spec(draft, self._draft.home.adapters, self._draft.learned_rows)

    def _price(self, key: str) -> PlanReport | None:
        """The measured price of a preset, if it is still that of the plan as it stands."""
        spec, report = self._known.get(key, (None, None))
        return report if spec == self._spec_of(key) else None

    def _priced(self, key: str, spec: TrainSpec, report: PlanReport) -> None:
        self._asked.pop(key, None)
        self._known[key] = spec, report
        self._show_prices()

    def _no_price(self, key: str, error: StudioError) -> None:
        self._asked.pop(key, None)
        self._unpriced[key] = words.PLAN_NO_PRICE(why=spoken(error.what))
        self._show_prices()

    def _show_prices(self) -> None:
        waiting = words.PLAN_MEASURING() if self._draft.report is not None and self._draft.draft.base else words.PLAN_AFTER()
        for key, label in self.price_labels.items():
            if (report := self._price(key)) is not None:
                label.setText(plan.price(report, self._final(key)))
            else:
                label.setText(self._unpriced.get(key, waiting))
            self.cards[key].setAccessibleDescription(f"{words.PRESET_HELP[key]()} {label.text()}")
        chosen = self._price(self._draft.draft.preset)
        caution = plan.warnings(chosen) if chosen else []
        self._warning.setText(" ".join(caution))
        self._warning.setVisible(bool(caution))
        self._show_remedies(plan.remedies(chosen, self._spec_of(self._draft.draft.preset)) if chosen else [])

    def _show_remedies(self, remedies: list[plan.Remedy]) -> None:
        """Buttons that make the plan fit; each is one change of the advanced settings."""
        clear(self._remedies)
        for remedy in remedies:
            self._remedies.addWidget(button(remedy.sentence, lambda r=remedy: self._draft.put(overrides=self._draft.draft.overrides | r.overrides)))

    def _final(self, key: str) -> TrainSpec:
        draft, report = plan.with_preset(self._draft.draft, key), self._price(key)
        spec = plan.to_spec(draft, self._draft.home.adapters, self._draft.learned_rows)
        return plan.within_five_minutes(spec, report) if key == "quick" and report is not None else spec

    # --- method and advanced ---

    def _ask_methods(self) -> None:
        if self._methods is None:
            self._talk.ask(DescribeMethods(), on_done=self._know_methods, on_error=self.failed.emit)

    def _know_methods(self, report: MethodsReport) -> None:
        self._methods = report.methods
        self.method_cards.know(report.methods)
        self._show_method()

    def _show_method(self) -> None:
        """The chosen card, and the form of its method's settings."""
        choice = self._draft.draft.method
        self.method_cards.show_choice(choice)
        title = methods.title(choice, self._methods or ())
        self.method_fold.set_title(words.PLAN_METHOD_CARDS(method=title))
        self._method_title.setText(words.PLAN_METHOD_FORM(method=title))
        found = next((m for m in self._methods or () if m["peft_type"] == methods.peft_type(choice)), None)
        clear(self._method_place)
        self._method_form = None
        if found is None:
            return
        self._method_form = Form(found["fields"], folded=words.PLAN_METHOD_MORE())
        self._show_defaults()
        self._method_form.put(self._draft.draft.method_overrides)
        self._method_form.changed.connect(lambda _: self._edited(method_overrides=self._method_form.different()))
        self._method_place.addWidget(text(spoken_setting(found["help"]), "muted"))
        self._method_place.addWidget(self._method_form)
        a11y.quiet_wheels_inside(self._method_form)

    def _edited(self, **settings) -> None:
        self._draft.put(**settings)
        self._show_state()                 # a fault changes no setting, but it keeps the start back

    def _reset(self) -> None:
        draft = self._draft.draft
        self._draft.put(overrides={}, method_overrides={})
        self.form.put(self._defaults_of(self.form) | plan.preset_spec(draft.preset, self._draft.learned_rows))
        if self._method_form is not None:
            self._method_form.put(self._defaults_of(self._method_form) | plan.preset_method(draft.preset, draft.method))
        self._show_state()

    @staticmethod
    def _defaults_of(form: Form) -> dict:
        return {name: field.default for name, field in form.fields.items()}

    # --- start ---

    def submit(self) -> None:
        """Put the training into the queue."""
        clear(self._trouble)
        self._show_state()
        if not self.start.isEnabled():
            self.said.emit(self._needs.text())
            return
        spec, name = self._final(self._draft.draft.preset), self._draft.draft.name.strip()
        try:
            job = self._queue.queue.submit(spec, name)
        except StudioError as error:
            self.form.complain(error.facts.get("fields", {}))
            self._trouble.addWidget(error_card(error))
            return
        self._draft.save()
        self.said.emit(words.PLAN_STARTED(name=name))
        self.started.emit(job)
