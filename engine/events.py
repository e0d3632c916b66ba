"""What happened: frozen facts that flow from the engine to whoever watches.

A job is a generator of events. They are written one JSON object a line into the run folder
(`engine.store.runs`) or over a worker's pipe; `seq` and `time` are added by the writer.
This room imports neither torch nor Qt.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

_KINDS: dict[str, type["Event"]] = {}


@dataclass(frozen=True)
class Event:
    """Base of all events. ``seq`` counts from 1 within one run; ``time`` is seconds since the epoch."""

    kind: ClassVar[str] = ""
    final: ClassVar[bool] = False          # the last event of its job

    seq: int = field(default=0, kw_only=True)
    time: float = field(default=0.0, kw_only=True)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        _KINDS[cls.kind] = cls

    def to_dict(self) -> dict:
        return {"event": self.kind, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}}


def from_dict(data: dict) -> Event:
    """Revive an event; unknown kinds and fields (a newer engine) become a `Note` or are dropped, never an error."""
    cls = _KINDS.get(data.get("event", ""))
    if cls is None:
        return Note(f"(unknown event {data.get('event')!r})", seq=data.get("seq", 0), time=data.get("time", 0.0))
    names = {f.name for f in dataclasses.fields(cls)}
    return cls(**{k: v for k, v in data.items() if k in names})


@dataclass(frozen=True)
class Progress(Event):
    """How far a stage is. ``total`` 0 means unknown; ``seconds_left`` is of the whole job, None while unknown."""

    kind: ClassVar[str] = "progress"
    stage: str                             # plain words: "Reading the examples"
    done: float = 0.0
    total: float = 0.0
    unit: str = ""                         # "steps", "bytes", "rows", "tensors"
    seconds_left: float | None = None


@dataclass(frozen=True)
class Note(Event):
    """Something worth a line in the log and, if ``step`` is set, a mark on the curve. Level: info, warning."""

    kind: ClassVar[str] = "note"
    text: str
    level: str = "info"
    step: int | None = None


@dataclass(frozen=True)
class Step(Event):
    """One optimizer step. ``error`` is the mean loss a learned token (nats); memory is the process's resident size."""

    kind: ClassVar[str] = "step"
    step: int
    steps: int
    error: float
    learning_rate: float
    tokens: int                            # useful tokens of this step
    tokens_per_second: float
    memory_mb: float
    seconds_left: float | None = None
    passes: float = 0.0                    # how often the data has been seen so far


@dataclass(frozen=True)
class Tried(Event):
    """One speed of a search for the learning speed. ``share``: the error after a correction this fast, over the untaught model's."""

    kind: ClassVar[str] = "tried"
    step: int
    steps: int                             # at most
    learning_rate: float
    share: float


@dataclass(frozen=True)
class Evaluated(Event):
    """Error on unseen examples. At step 0 it is the untouched base."""

    kind: ClassVar[str] = "evaluated"
    step: int
    error: float
    rows: int
    best: bool = False


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint that can be resumed from is safely on disk. Without ``path``: none is left, it would begin anew."""

    kind: ClassVar[str] = "saved"
    step: int
    path: str


@dataclass(frozen=True)
class Sample(Event):
    """An answer to a pinned question at this step."""

    kind: ClassVar[str] = "sample"
    step: int
    prompt: str
    answer: str


@dataclass(frozen=True)
class Token(Event):
    """The next piece of text of an answer being spoken."""

    kind: ClassVar[str] = "token"
    column: str
    text: str


@dataclass(frozen=True)
class Answered(Event):
    """An answer is complete. ``base`` and ``adapters`` stamp what really answered, as the engine saw it."""

    kind: ClassVar[str] = "answered"
    column: str
    text: str
    tokens: int
    seconds: float
    base: str                              # fingerprint of the base weights' file header
    adapters: list = field(default_factory=list)   # [[name, fingerprint, strength], …]; strength as at the last token
    stopped: str = "end"                   # end, length, stop


@dataclass(frozen=True)
class Checked(Event):
    """One check of an export. ``value`` and ``limit`` are numbers where there are any."""

    kind: ClassVar[str] = "checked"
    name: str
    passed: bool
    sentence: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Reviewed(Event):
    """One held-back row before and after: mean error of a learned token in nats; answers only where they were spoken."""

    kind: ClassVar[str] = "reviewed"
    row: int                               # line in the person's file
    question: str
    wanted: str
    error_before: float
    error_after: float
    outcome: str                           # win, same, loss
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Finished(Event):
    """The job is done. ``result`` is plain JSON: paths and scores; its keys are documented where it is made."""

    kind: ClassVar[str] = "finished"
    final: ClassVar[bool] = True
    result: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Failed(Event):
    """The job ended with an error (`engine.errors.StudioError.to_dict`); what checkpoints hold is kept."""

    kind: ClassVar[str] = "failed"
    final: ClassVar[bool] = True
    error: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Stopped(Event):
    """The job ended because it was asked to. ``resumable``: a checkpoint at ``step`` awaits."""

    kind: ClassVar[str] = "stopped"
    final: ClassVar[bool] = True
    reason: str = "cancel"                 # cancel, pause
    resumable: bool = False
    step: int | None = None
