"""What the Teach panel's pages share: the draft, what is known of its data file, and which training is being looked at."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QObject, QTimer, Signal

from engine.errors import StudioError
from engine.specs import DataReport, Edit
from engine.store.home import Home
from studio.core import plan
from studio.core.text import teach as words

KEY = "teach.draft"


class TeachDraft(QObject):
    """`changed` says which part changed: data, roles, edits, base, name, preset, prompts, overrides, method_overrides, report, job."""

    changed = Signal(str)

    def __init__(self, home: Home, settings):
        super().__init__()
        self.home, self._settings = home, settings
        self.draft = plan.Draft.from_dict(settings.recall(KEY))
        if self.draft.base and not Path(self.draft.base).exists():
            self.draft.base = ""
        self.report: DataReport | None = None
        self.glimpse: DataReport | None = None         # of a long file what its first rows told, until all are counted
        self.data_error: StudioError | None = None
        self.job_id: int | None = None
        self._suggested: list[str] = []    # pinned questions that nobody wrote
        self._suggested_for = self.draft.data
        self._before: list[list] = []      # edits as they were, for undo
        self._after: list[list] = []
        self._save = QTimer(self, interval=600, singleShot=True)      # not at every key that is typed
        self._save.timeout.connect(self.save)

    def put(self, **values) -> None:
        """Change parts of the draft; tells once for each part that is really different."""
        if values.get("data", self.draft.data) != self.draft.data:
            values = {"roles": {}, "edits": [], "prompts": self.own_prompts, **values}     # they were meant for the other examples
            self._before, self._after = [], []
        different = [name for name, value in values.items() if getattr(self.draft, name) != value]
        for name in different:             # all of them first, so that nobody who is told sees a mixture of old and new
            setattr(self.draft, name, values[name])
        if "data" in different:
            self.report = self.glimpse = self.data_error = None
            different = [name for name in different if name not in ("roles", "edits")]
        for name in different:
            self.changed.emit(name)
        self._save.start()

    def replace(self, draft: plan.Draft) -> None:
        """Take over a whole draft (the sample project, "train more")."""
        self.put(**draft.to_dict())

    def found(self, report: DataReport | None, error: StudioError | None = None) -> None:
        """What looking at the data file brought; of a long one first what is not the whole."""
        self.glimpse = report
        self.report, self.data_error = report if report and report.whole else None, error
        if self.report and self.report.asks and self._suggested_for != self.draft.data:
            self._suggested_for = self.draft.data
            if not self.own_prompts:
                self._suggested = list(self.report.asks)
                self.put(prompts=list(self.report.asks))
        self.changed.emit("report")

    @property
    def own_prompts(self) -> list[str]:
        """The pinned questions, unless they are those that the examples suggested."""
        return [] if self.draft.prompts == self._suggested else self.draft.prompts

    # --- changes of the examples: kept in the draft, never written into the file ---

    @property
    def edits(self) -> list[Edit]:
        return [Edit.from_dict(edit) for edit in self.draft.edits]

    @property
    def can_undo_edit(self) -> bool:
        return bool(self._before)

    @property
    def can_redo_edit(self) -> bool:
        return bool(self._after)

    def edit(self, more: list[Edit]) -> None:
        """Change the examples; one step that can be undone."""
        self._before.append(self.draft.edits)
        self._after.clear()
        self.put(edits=[*self.draft.edits, *(edit.to_dict() for edit in more)])

    def undo_edit(self) -> None:
        """Take the last change back; nothing happens if there is none."""
        self._step(self._before, self._after)

    def redo_edit(self) -> None:
        """Change again what was taken back; nothing happens if there is nothing."""
        self._step(self._after, self._before)

    def _step(self, source: list[list], target: list[list]) -> None:
        if source:
            target.append(self.draft.edits)
            self.put(edits=source.pop())

    def look_at(self, job_id: int | None) -> None:
        """The training that the Train and Review pages show."""
        if job_id != self.job_id:
            self.job_id = job_id
            self.changed.emit("job")

    @property
    def learned_rows(self) -> int:
        return self.report.rows - self.report.held_out if self.report else 0

    def spec(self):
        """The `TrainSpec` of the draft as it stands."""
        return plan.to_spec(self.draft, self.home.adapters, self.learned_rows)

    def missing(self) -> dict[str, str]:
        """Step → sentence for what is still needed before teaching can start."""
        found = plan.missing(self.draft, self.home.adapters)
        if self.data_error is not None:
            found["data"] = words.BAD_DATA()
        elif self.glimpse is not None and self.report is None:
            found["data"] = words.NEEDS_COUNT()
        return found

    def save(self) -> None:
        """Keep the draft, so that nothing that was typed is lost."""
        self._save.stop()
        if self._settings.recall(KEY) != self.draft.to_dict():
            self._settings.remember(KEY, self.draft.to_dict())
