"""What a person decided about their examples: what the columns mean, and what was changed in them. Kept beside the plan, never in the file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from engine.specs.fields import Spec, knob

ROLES = ("question", "answer", "context", "system", "messages", "text", "user", "assistant", "ignore")


@dataclass
class Edit(Spec):
    """One change. Rows are named by the beginning of their hash (16 hex digits), as they stand in the file; no rows means all."""

    kind: ClassVar[str] = "edit"

    do: str = knob(label="Change", choices=("drop", "keep-one", "mask", "strip", "shorten", "merge"),
                   help="drop rows · keep-one of equal rows · mask personal data · strip template signs · shorten · merge answers.")
    rows: list[str] = knob(factory=list, label="Rows", help="Names of the rows; empty means every row.")
    what: list[str] = knob(factory=list, label="What", help="Kinds of personal data to mask, or signs to strip.")
    size: int = knob(0, label="Size", unit="letters", low=0, help="Length to shorten to.")

    def problems(self) -> dict[str, str]:
        found = super().problems()
        if self.do in ("drop", "merge") and not self.rows:
            found["rows"] = f"“{self.do}” needs the rows that are meant."
        if self.do == "strip" and not self.what:
            found["what"] = "“strip” needs the signs that are meant."
        if self.do == "shorten" and self.size < 1:
            found["size"] = "“shorten” needs a length."
        if any(not isinstance(row, str) or not re.fullmatch("[0-9a-f]{16}", row) for row in self.rows):
            found["rows"] = "A row is named by 16 hexadecimal digits."
        return found


def data_problems(roles: dict, edits: list[Edit]) -> dict[str, str]:
    """Field name → sentence for the part of a plan that concerns the examples."""
    found = {}
    if strange := [role for role in roles.values() if role not in ROLES]:
        found["roles"] = f"A column can be {', '.join(ROLES)}, not {strange[0]!r}."
    for edit in edits:
        if not isinstance(edit, Edit):
            found["edits"] = "A change of the examples has the wrong form."
        else:
            for name, sentence in edit.problems().items():
                found[f"edits.{name}"] = sentence
    return found


@dataclass
class Examples(Spec):
    """A file as somebody wants it read; the base of every request about examples. ``roles`` empty: told from the file."""

    data: str = knob(label="File", help="The data file or folder.")
    roles: dict = knob(factory=dict, label="Roles", help="Column name → role, where the person has said it.")
    edits: list[Edit] = knob(factory=list, label="Changes", help="What was changed in the examples.")
    holdout: float = knob(0.1, label="Held back for testing", low=0, high=0.5, help="Share of the examples that is only used to test.")

    def problems(self) -> dict[str, str]:
        return super().problems() | data_problems(self.roles, self.edits)


# --- answers -----------------------------------------------------------------------------------

@dataclass
class DataReport(Spec):
    """What a data file holds. `examples` are the first few rows as chat messages."""

    kind: ClassVar[str] = "data-report"
    path: str = ""
    sentence: str = ""                     # "120 question and answer pairs, from the columns question and answer."
    rows: int = 0                          # as the edits leave them
    held_out: int = 0
    shape: str = ""                        # name of the recognised shape, e.g. "question/answer"
    columns: list[str] = knob(factory=list, label="Columns", help="Names as they stand in the file, or the people of a chat.")
    roles: dict = knob(factory=dict, label="Roles", help="Column name → role (question, answer, system, messages, text).")
    choices: dict = knob(factory=dict, label="Choices", help="Column name → the roles that it can have.")
    examples: list = knob(factory=list, label="Examples", help="Rows as lists of {role, content}.")
    notes: list[str] = knob(factory=list, label="Notes", help="What was left out and why, in sentences.")
    found: list = knob(factory=list, label="Found", help="[what, how many] for each part, e.g. [\"question and answer pairs\", 120].")
    asks: list[str] = knob(factory=list, label="Questions", help="A few short questions of held-back rows, to be pinned.")
    files: int = 1
    guessed: bool = False                  # the columns have unknown names
    whole: bool = True                     # there are no other rows than these


@dataclass
class RowsPage(Spec):
    """Some rows in order, as the edits leave them. `held` says of each whether it is held back for testing."""

    kind: ClassVar[str] = "rows-page"
    start: int = 0
    examples: list = knob(factory=list, label="Examples", help="Rows as lists of {role, content}.")
    held: list = knob(factory=list, label="Held back", help="One truth value a row.")


@dataclass
class RenderedRow(Spec):
    """One row exactly as the model sees it. `spans` is a list of [text, learned]."""

    kind: ClassVar[str] = "rendered-row"
    spans: list = knob(factory=list, label="Text", help="Pieces of text; learned ones are true.")
    tokens: int = 0
    learned_tokens: int = 0
    limit: int = 0


@dataclass
class Fix(Spec):
    """A way to mend a problem: ``name`` is drop, keep-one, keep-usual, mask, strip, shorten or merge."""

    kind: ClassVar[str] = "fix"
    name: str = ""
    edits: list[Edit] = knob(factory=list, label="Changes", help="What this fix adds to the edits.")


@dataclass
class Problem(Spec):
    """One kind of thing that is wrong with some rows."""

    kind: ClassVar[str] = "problem"
    rule: str = ""                         # name of the rule, see `engine.data.lint.RULES`
    count: int = 0                         # rows concerned
    rows: list[int] = knob(factory=list, label="Rows", help="Places of the first of them.")
    evidence: list[str] = knob(factory=list, label="Evidence", help="What was found in these, short; personal data are masked.")
    fixes: list[Fix] = knob(factory=list, label="Fixes", help="Ways to mend it, the best one first.")
    sentence: str = ""                     # English; a window says it in its own words from rule, count and facts
    facts: dict = knob(factory=dict, label="Facts", help="Numbers and names for the sentence.")


@dataclass
class LintReport(Spec):
    """What is wrong with the examples. `rows` were looked at; `notes` say what could not be looked at."""

    kind: ClassVar[str] = "lint-report"
    rows: int = 0
    problems: list[Problem] = knob(factory=list, label="Problems", help="The worst first.")
    notes: list[str] = knob(factory=list, label="Notes", help="What was not looked at, and why.")


# --- requests ----------------------------------------------------------------------------------

def head() -> int:
    """The knob of requests that can do with the first rows of a long file, while the others are being read."""
    return knob(0, label="Head", low=0, help="Only the first so many rows; 0 for all.")


@dataclass
class DescribeData(Examples):
    """Answered by `DataReport`."""

    kind: ClassVar[str] = "describe-data"
    head: int = head()


@dataclass
class ShowRows(Examples):
    """Answered by `RowsPage`."""

    kind: ClassVar[str] = "show-rows"
    head: int = head()
    start: int = knob(0, label="First row", low=0, help="Counted from 0.")
    count: int = knob(50, label="Rows", low=1, high=1000, help="How many at most.")
    letters: int = knob(0, label="Letters", low=0, help="How many of each message at most; 0 for all.")


@dataclass
class RenderRow(Examples):
    """Answered by `RenderedRow`: computed by the very function that makes the training labels."""

    kind: ClassVar[str] = "render-row"
    head: int = head()
    base: str = knob("", label="Model", help="Folder of the base model.")
    row: int = 0
    max_length: int = 1024
    system: str = ""


@dataclass
class LintData(Examples):
    """Answered by `LintReport`. Without a base, what needs the model's tokens is not looked at."""

    kind: ClassVar[str] = "lint-data"
    base: str = knob("", label="Model", help="Folder of the base model; may be empty.")
    max_length: int = 1024
    system: str = ""
