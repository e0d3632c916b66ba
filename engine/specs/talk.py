"""Short requests to a warm worker, answered over its pipes while the person waits.

A request is a `Spec`; it is answered by a stream of `engine.events` and one final result:
the dataclass named in `answer`. Nothing here is worth a row in the queue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engine.specs.data import DataReport, DescribeData, LintData, LintReport, RenderedRow, RenderRow, RowsPage, ShowRows
from engine.specs.fields import Spec, knob
from engine.specs.jobs import StackEntry, TrainSpec


# --- answers -----------------------------------------------------------------------------------

@dataclass
class PlanReport(Spec):
    """The price of a plan on this machine, measured by a short probe."""

    kind: ClassVar[str] = "plan-report"
    rows: int = 0
    steps: int = 0
    tokens: int = 0                        # of all passes together
    seconds: float = 0.0
    seconds_error: float = 0.0             # plus or minus
    memory_mb: float = 0.0                 # of each graphics card, or of the computer where there is none
    free_memory_mb: float = 0.0
    cards: int = 0                         # graphics cards that it is taught on
    disk_mb: float = 0.0
    trainable: int = 0                     # adapter parameters
    sentence: str = ""


@dataclass
class MethodsReport(Spec):
    """Every method with its settings: {peft_type, title, help, fields}; fields as `engine.specs.fields.describe_fields` gives them."""

    kind: ClassVar[str] = "methods-report"
    methods: list = knob(factory=list, label="Methods", help="One description a method.")


# --- requests ----------------------------------------------------------------------------------

@dataclass
class EstimatePlan(Spec):
    """Answered by `PlanReport`."""

    kind: ClassVar[str] = "estimate-plan"
    plan: TrainSpec = knob(label="Plan", help="The plan whose price is asked.")


@dataclass
class DescribeMethods(Spec):
    """Answered by `MethodsReport`: what the form of *Advanced* is generated from."""

    kind: ClassVar[str] = "describe-methods"


@dataclass
class OpenChat(Spec):
    """Load a base (kept warm) and put this stack on it. Answered by nothing but completion."""

    kind: ClassVar[str] = "open-chat"
    base: str = knob(label="Model", help="Folder of the base model.")
    stack: list[StackEntry] = knob(factory=list, label="Stack", help="Adapters with strengths, in order.")
    beside: str = knob("", label="Exported model", help="Folder of a complete model that answers as “file”; empty for none.")


@dataclass
class SetStrengths(Spec):
    """Heard at the next token, even while an answer is being spoken. One number an entry of the open stack."""

    kind: ClassVar[str] = "set-strengths"
    strengths: list[float] = knob(factory=list, label="Strengths", help="By position in the open stack; 0 is off.")


@dataclass
class Say(Spec):
    """Stream an answer as `engine.events.Token`, then one `engine.events.Answered` a column."""

    kind: ClassVar[str] = "say"
    messages: list = knob(factory=list, label="Messages", help="Chat so far as {role, content}; the last is the user's.")
    columns: list[str] = knob(factory=lambda: ["stack"], label="Columns", help="Who answers, in turn: “base”, “stack”, “a”, “b”, “file”.")
    max_new_tokens: int = knob(200, label="Longest answer", unit="tokens", low=1, high=100_000, help="The answer stops here at the latest.")
    temperature: float = knob(0.0, label="Imagination", term="temperature", low=0, high=5, help="0 always takes the likeliest word.")
    top_p: float = knob(0.95, label="Choice", term="top_p", low=0.01, high=1, help="Only the likeliest words up to this share are considered.")
    seed: int = knob(0, label="Seed", low=0, help="Same seed, same answer.")
    strengths: list[float] = knob(factory=list, label="Strengths", help="Of the columns “a” and “b”: one number an entry of the open stack, kept "
                                                                        "while they answer.")


TALK_KINDS: dict[str, type[Spec]] = {
    cls.kind: cls for cls in (DescribeData, ShowRows, RenderRow, LintData, EstimatePlan, DescribeMethods, OpenChat, SetStrengths, Say)}
ANSWER_KINDS: dict[str, type[Spec]] = {
    cls.kind: cls for cls in (DataReport, RowsPage, RenderedRow, LintReport, PlanReport, MethodsReport)}
