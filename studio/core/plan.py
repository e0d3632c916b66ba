"""From a person's few choices to a `TrainSpec`, and from its measured price back to a sentence."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from engine.errors import StudioError
from engine.events import Step
from engine.specs import Edit, PlanReport, TrainSpec
from engine.store.home import safe_name
from studio.core import methods
from studio.core.text import amounts, number
from studio.core.text import teach as words

PRESETS = ("quick", "balanced", "best")
QUICK_ROWS = 200                           # a quick check looks at no more examples …
QUICK_SECONDS = 300                        # … and takes no longer
LONG_SECONDS = 8 * 3600
SHORTEST = 256                             # tokens below which a limit would leave out most people's examples
_VALUES = {                                # passes, capacity
    "quick": (1.0, 8),
    "balanced": (3.0, 16),
    "best": (5.0, 32),
}


@dataclass
class Draft:
    """What has been chosen so far on the Teach panel. Plain data: it is kept in the settings and survives a restart."""

    data: str = ""
    roles: dict = field(default_factory=dict)              # column → role, where the person has said it
    edits: list = field(default_factory=list)              # `engine.specs.Edit`s as plain data
    base: str = ""
    name: str = ""
    preset: str = "balanced"
    prompts: list[str] = field(default_factory=list)
    overrides: dict = field(default_factory=dict)          # fields of TrainSpec that differ from the preset
    method: str = "LORA"                                   # a card's key, or PEFT's name of a method
    method_overrides: dict = field(default_factory=dict)   # fields of the method's config that differ from the preset

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict | None) -> "Draft":
        """Revive a draft; whatever does not fit (an older studio wrote it) is left at its default."""
        draft = cls()
        for f in fields(cls):
            value = (data or {}).get(f.name)
            if type(value) is type(getattr(draft, f.name)):
                setattr(draft, f.name, value)
        if draft.preset not in PRESETS:
            draft.preset = "balanced"
        return draft


def preset_spec(preset: str, learned: int) -> dict:
    """The fields of `TrainSpec` that a preset sets; ``learned`` is the number of examples that are learned (0 if unknown)."""
    passes, _ = _VALUES[preset]
    if preset == "quick" and learned > QUICK_ROWS:
        passes = QUICK_ROWS / learned
    return {"passes": passes, "early_stop": preset != "quick"}


def preset_method(preset: str, method: str) -> dict:
    """The fields of the method's config that a preset sets, by PEFT's names."""
    return methods.settings(method, _VALUES[preset][1])


def with_preset(draft: Draft, preset: str) -> Draft:
    """The draft with another preset: what that preset decides is no longer as the person had set it, everything else stays."""
    if preset == draft.preset:
        return draft
    return replace(draft, preset=preset,
                   overrides={k: v for k, v in draft.overrides.items() if k not in preset_spec(preset, 0)},
                   method_overrides={k: v for k, v in draft.method_overrides.items() if k not in preset_method(preset, draft.method)})


def with_method(draft: Draft, method: str) -> Draft:
    """The draft with another method: settings of the old one's own mean nothing to the new one."""
    return draft if method == draft.method else replace(draft, method=method, method_overrides={})


def to_spec(draft: Draft, adapters: Path, learned: int = 0) -> TrainSpec:
    """The job that the draft describes; the adapter goes into the folder ``adapters`` under the skill's name."""
    values = preset_spec(draft.preset, learned) | draft.overrides
    return TrainSpec(base=draft.base, data=draft.data, roles=draft.roles, edits=[Edit.from_dict(edit) for edit in draft.edits],
                     out=str(adapters / safe_name(draft.name)), method=methods.peft_type(draft.method),
                     method_config=preset_method(draft.preset, draft.method) | draft.method_overrides,
                     prompts=[p.strip() for p in draft.prompts if p.strip()], **values)


def within_five_minutes(spec: TrainSpec, report: PlanReport) -> TrainSpec:
    """A quick check that would take longer on this machine stops in time; `price` says what share it then sees."""
    if report.seconds <= QUICK_SECONDS or not report.steps or spec.max_steps:
        return spec
    return replace(spec, max_steps=max(1, int(report.steps * QUICK_SECONDS / report.seconds)))


def missing(draft: Draft, adapters: Path) -> dict[str, str]:
    """Step → sentence, for every step of Data, Model and Plan on which something is still needed."""
    found = {}
    if not draft.data:
        found["data"] = words.NEEDS_DATA()
    if not draft.base:
        found["model"] = words.NEEDS_MODEL()
    if not draft.name.strip():
        found["plan"] = words.NEEDS_NAME()
    elif (adapters / safe_name(draft.name)).exists():
        found["plan"] = words.NAME_TAKEN(name=draft.name.strip())
    return found


def price(report: PlanReport, spec: TrainSpec) -> str:
    """ "about 2 min ± 1 · 1.9 of 8.0 GB memory · 3 passes over 412 examples"."""
    learned = max(report.rows, 1)
    seconds, spread, seen = report.seconds, report.seconds_error, spec.passes
    examples = words.EXAMPLES(report.rows)
    passes = words.PRICE_PASSES(seen, shown=number(seen), examples=examples)
    if seen < 1:
        passes = words.PRICE_PART(seen=round(seen * learned), examples=examples)
    if spec.max_steps and spec.max_steps < report.steps:
        share = spec.max_steps / report.steps
        seconds, spread = seconds * share, spread * share
        passes = words.PRICE_SHORTENED(share=amounts.percent(min(1.0, share * seen)))
    memory = words.OF_MEMORY(used=_gb(report.memory_mb), free=_gb(report.free_memory_mb))
    if report.cards > 1:
        memory = words.PRICE_CARDS(memory=memory, n=report.cards)
    return words.PRICE(time=words.PRICE_TIME(amount=amounts.duration(seconds), error=_spread(seconds, spread)), memory=memory, passes=passes)


def more_passes(planned: float) -> list[float]:
    """How much time may be added to a training at a time: a pass, and as much again as was planned."""
    return sorted({1.0, float(planned)} | ({3.0} if planned == 1 else set()))


def seconds_of(passes: float, last: Step | None) -> float | None:
    """What so many passes more cost a training, by what its steps have cost up to the ``last`` one; None while that is not known."""
    if last is None or not last.seconds_left or not last.passes or last.steps <= last.step:
        return None
    return last.seconds_left / (last.steps - last.step) * last.step / last.passes * passes


def _spread(seconds: float, spread: float) -> str:
    """The plus-or-minus in the unit of the amount before it."""
    unit = 1 if seconds < 90 else 60 if seconds < 3600 else 0
    return number(max(1, round(spread / unit))) if unit else amounts.duration(spread)


def _gb(megabytes: float) -> str:
    return number(megabytes / 1e3, 1)


def warnings(report: PlanReport) -> list[str]:
    """Sentences of caution about a price; empty when it is fine."""
    found = []
    if report.free_memory_mb and report.memory_mb > report.free_memory_mb:
        found.append(words.MEMORY_WARNING())
    if report.seconds > LONG_SECONDS:
        found.append(words.LONG_WARNING())
    return found


@dataclass(frozen=True)
class Remedy:
    """A change of the plan that makes it fit; ``overrides`` are fields of `TrainSpec`."""

    sentence: str
    overrides: dict


def remedies(report: PlanReport, spec: TrainSpec) -> list[Remedy]:
    """What can be done about a plan that needs more memory than is free, the least harmful first; empty when it fits."""
    if not report.free_memory_mb or report.memory_mb <= report.free_memory_mb:
        return []
    chosen, found = vars(spec), []
    if chosen.get("checkpointing", "on") != "on":
        found.append(Remedy(words.REMEDY_CHECKPOINTING(), {"checkpointing": "on"}))
    if spec.precision == "float32":
        found.append(Remedy(words.REMEDY_PRECISION(), {"precision": "auto"}))
    if chosen.get("base_bits", 4) != 4:
        found.append(Remedy(words.REMEDY_BITS(), {"base_bits": 4}))
    if spec.max_length > SHORTEST:
        shorter = max(SHORTEST, spec.max_length // 2)
        found.append(Remedy(words.REMEDY_LENGTH(n=shorter), {"max_length": shorter}))
    return found


@dataclass(frozen=True)
class Fit:
    """How well a model suits this computer: ``kind`` is well, tight, big or no."""

    kind: str
    sentence: str


def fit(parameters: int, free_bytes: float) -> Fit:
    """Judge by size alone, before anything is measured: weights in float32, a fifth for the work on them, half a gigabyte for the rest."""
    need = parameters * 4 * 1.2 + 5e8
    facts = {"need": amounts.size(need), "free": amounts.size(free_bytes)}
    if need < 0.6 * free_bytes:
        return Fit("well", words.FIT_WELL(**facts))
    if need < 0.95 * free_bytes:
        return Fit("tight", words.FIT_TIGHT(**facts))
    return Fit("big", words.FIT_BIG(**facts))


@dataclass(frozen=True)
class SampleData:
    """A data set that comes with the studio; ``settings`` are fields of `TrainSpec` that suit it."""

    key: str
    path: Path
    title: str
    about: str
    rows: int
    name: str
    prompts: list[str]
    settings: dict


def samples(folder: Path) -> list[SampleData]:
    """The data sets listed in ``samples.json``. Raises `StudioError` if the installation is damaged."""
    try:
        table = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
        return [SampleData(key, folder / entry["file"], entry["title"], entry["about"], entry["rows"], entry["name"],
                           list(entry["prompts"]), dict(entry.get("settings", {})))
                for key, entry in table.items() if isinstance(entry, dict) and "file" in entry]
    except (OSError, ValueError, KeyError) as error:
        raise StudioError("The sample data are missing.", "The installation is damaged.", "Install the studio again.",
                          details=str(error)) from error


def sample_draft(sample: SampleData, base: str, preset: str = "balanced") -> Draft:
    """A draft with everything chosen, so that one press of *Start* teaches it."""
    settings = dict(sample.settings)
    config = {k: v for k, v in settings.pop("method_config", {}).items() if preset_method(preset, "LORA").get(k) != v}
    usual = preset_spec(preset, sample.rows)
    return Draft(data=str(sample.path), base=base, name=sample.title, preset=preset, prompts=sample.prompts[:3],
                 overrides={k: v for k, v in settings.items() if usual.get(k) != v}, method_overrides=config)
