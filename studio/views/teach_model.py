"""Teach, step 2: which model learns. Cards sorted by how well they suit this computer, the reason under each."""

from __future__ import annotations

from collections.abc import Callable

import psutil
from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QFileDialog, QLineEdit, QVBoxLayout, QWidget

from engine.store.library import ModelInfo
from studio.core import bring, plan
from studio.core.text import amounts
from studio.core.text import teach as words
from studio.core.text import work
from studio.models.teach_draft import TeachDraft
from studio.views import a11y
from studio.views.flow import Flow
from studio.views.parts import CardButton, Column, OneOf, Row, button, card, clear, page, picture, text

ORDER = ("well", "tight", "big", "no")
LOOKS = {"well": "pill-good", "tight": "pill-warn", "big": "pill-bad", "no": "pill-bad"}


class ModelPage(QWidget):
    """``free`` tells the bytes of memory that can be used now. Signals: `said(str)`, `fetch_wanted()`, `wanted(FetchSpec, title)`."""

    said = Signal(str)
    fetch_wanted = Signal()
    wanted = Signal(object, str)

    def __init__(self, draft: TeachDraft, catalogue, free: Callable[[], float] = lambda: psutil.virtual_memory().available):
        super().__init__()
        self._draft, self._catalogue, self._free = draft, catalogue, free
        self._cards = QVBoxLayout()
        self._cards.setContentsMargins(0, 0, 0, 0)
        self._group = OneOf(self)
        self._none = card(Row(picture("model", "muted"), text(words.MODEL_NONE()),
                              button(work.START_FETCH(), self.fetch_wanted.emit, "primary")))
        self._none.layout().itemAt(0).layout().setStretch(1, 1)
        Column(page(Column(text(words.MODEL_HEAD(), "title"), text(words.MODEL_INTRO(), "muted")), self._none, self._cards, self._bring_card(), None),
               parent=self)
        catalogue.subscribe(self.refresh)
        draft.changed.connect(lambda part: part == "base" and self._show_choice())
        self.refresh()

    def _bring_card(self) -> QWidget:
        self.name = QLineEdit()
        self.name.setPlaceholderText(words.MODEL_BRING_HINT())
        a11y.name(self.name, words.MODEL_BRING(), words.MODEL_BRING_HINT())
        self.name.returnPressed.connect(self._bring)
        self.name.textEdited.connect(lambda _: self._fault.hide())
        self.bring = button(words.MODEL_BRING_DO(), self._bring, icon="import")
        browse = button(words.MODEL_BRING_BROWSE(), self._browse)
        self._fault = text("", "bad small")
        self._fault.hide()
        return card(text(words.MODEL_BRING(), "strong"), text(words.MODEL_BRING_HELP(), "muted small"), self.name, self._fault,
                    Flow(browse, self.bring))

    def _browse(self) -> None:
        if folder := QFileDialog.getExistingDirectory(self, words.MODEL_BRING()):
            self.name.setText(folder)
            self._bring()

    def _bring(self) -> None:
        """Ask for the model that is named; a wrong name is told where it was typed."""
        wish = bring.understand(self.name.text(), self._draft.home.models)
        self._fault.setText(wish.fault)
        self._fault.setVisible(bool(wish.fault))
        if wish.spec is not None:
            self.wanted.emit(wish.spec, words.MODEL_BRING_TITLE(name=wish.name))
            self.said.emit(words.MODEL_BRING_COMING(name=wish.name))
            self.name.clear()

    def refresh(self) -> None:
        """Build the cards anew from the catalogue."""
        self._group.empty()
        clear(self._cards)
        free = self._free()
        rated = [(judge(model, free), model) for model in self._catalogue.models]
        self._models = [model for _, model in sorted(rated, key=lambda r: (ORDER.index(r[0].kind), -r[1].parameters))]
        fits = {model.path: fit for fit, model in rated}
        for number, model in enumerate(self._models):
            made = self._card(model, fits[model.path])
            self._group.addButton(made, number)
            self._cards.addWidget(made)
        self._none.setVisible(not self._models)
        if len(self._models) == 1 and not self._draft.draft.base and fits[self._models[0].path].kind != "no":
            self._draft.put(base=str(self._models[0].path))
        self._show_choice()

    def _card(self, model: ModelInfo, fit: plan.Fit) -> CardButton:
        pill = text(f"{words.FIT_MARKS[fit.kind]}  {words.FIT[fit.kind]()}", LOOKS[fit.kind], wrap=False)
        facts = words.MODEL_FACTS(parameters=amounts.count(model.parameters), size=amounts.size(model.bytes), kind=model.model_type)
        made = CardButton(f"{model.name}, {words.FIT[fit.kind]()}", Row(text(model.name, "strong"), None, pill), text(facts, "muted small"),
                          text(fit.sentence, "muted small" if fit.kind == "no" else "small"), description=f"{facts}. {fit.sentence}", checkable=True)
        made.setEnabled(fit.kind != "no")
        made.toggled.connect(lambda on, path=str(model.path): on and self._draft.put(base=path))
        return made

    def _show_choice(self) -> None:
        self._group.settle()
        for number, model in enumerate(self._models):
            if str(model.path) == self._draft.draft.base:
                self._group.button(number).setChecked(True)
                return
        self._group.uncheck()

    def keyPressEvent(self, event) -> None:    # noqa: N802 (Qt's name)
        if event.key() == Qt.Key.Key_F5:
            self._catalogue.refresh()
        else:
            super().keyPressEvent(event)


def judge(model: ModelInfo, free: float) -> plan.Fit:
    """By size, unless the model cannot be taught from chats at all."""
    if not model.has_chat_template:
        return plan.Fit("no", words.FIT_NO_TEMPLATE())
    return plan.fit(model.parameters, free)
