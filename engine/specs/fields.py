"""Field metadata: one description of a setting feeds the form, the command line and the docs."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import MISSING, dataclass, field
from typing import Any

from engine.errors import InvalidSpec


def knob(default: Any = MISSING, *, label: str, help: str, term: str = "", unit: str = "", low: float | None = None,
         high: float | None = None, choices: tuple | None = None, advanced: bool = False, factory=MISSING):
    """A dataclass field that explains itself.

    Args:
        label: plain words, shown first. help: one sentence on what it does and when to change it.
        term: the technical (PEFT) name shown small beside the label. unit: e.g. ``"rows"``.
        low, high: inclusive bounds. choices: the allowed values. advanced: folded away by default.
    """
    meta = {"label": label, "help": help, "term": term, "unit": unit, "low": low, "high": high,
            "choices": choices, "advanced": advanced}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=meta)
    return field(metadata=meta) if default is MISSING else field(default=default, metadata=meta)


def _accepts(annotation: Any, value: Any) -> bool:
    origin = typing.get_origin(annotation)
    if annotation is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(arm, value) for arm in typing.get_args(annotation))
    if annotation is None or annotation is type(None):
        return value is None
    if origin in (list, tuple):
        return isinstance(value, (list, tuple))
    if origin is dict:
        return isinstance(value, dict)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, annotation) if isinstance(annotation, type) else True


def problems(spec: Any) -> dict[str, str]:
    """Field name → sentence, for every field whose type, bound or choice is violated."""
    found: dict[str, str] = {}
    hints = typing.get_type_hints(type(spec))
    for f in dataclasses.fields(spec):
        value, meta = getattr(spec, f.name), f.metadata
        label = meta.get("label", f.name)
        if not _accepts(hints[f.name], value):
            found[f.name] = f"“{label}” cannot be {value!r}."
        elif meta.get("choices") and value not in meta["choices"]:
            found[f.name] = f"“{label}” must be one of {', '.join(map(str, meta['choices']))}, not {value!r}."
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            if value != value:
                found[f.name] = f"“{label}” must be a number."
            elif meta.get("low") is not None and value < meta["low"]:
                found[f.name] = f"“{label}” must be at least {meta['low']:g}, not {value:g}."
            elif meta.get("high") is not None and value > meta["high"]:
                found[f.name] = f"“{label}” may be at most {meta['high']:g}, not {value:g}."
        elif isinstance(value, str) and not value.strip() and f.default is MISSING and f.default_factory is MISSING:
            found[f.name] = f"“{label}” is missing."
    return found


@dataclass
class Spec:
    """Base of everything that can be asked for: plain data, JSON in and out, checked with sentences."""

    kind: typing.ClassVar[str] = ""

    def problems(self) -> dict[str, str]:
        """Field name → sentence; empty when the spec can be carried out as far as plain data can tell."""
        return problems(self)

    def check(self) -> "Spec":
        """Return self, or raise `InvalidSpec` with one sentence a field."""
        if found := self.problems():
            raise InvalidSpec(" ".join(found.values()), do="Change it and start again.", fields=found)
        return self

    def to_dict(self) -> dict:
        return {"kind": self.kind, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: dict) -> "Spec":
        """Build from plain data. Raises `InvalidSpec` for unknown or missing fields."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        data = {k: v for k, v in data.items() if k != "kind"}
        if unknown := sorted(set(data) - set(known)):
            raise InvalidSpec(f"Unknown setting: {', '.join(unknown)}.", do=f"Known are: {', '.join(known)}.")
        missing = [n for n, f in known.items() if n not in data and f.default is MISSING and f.default_factory is MISSING]
        if missing:
            raise InvalidSpec(f"These settings are missing: {', '.join(missing)}.")
        hints = typing.get_type_hints(cls)
        return cls(**{name: _revive(hints[name], value) for name, value in data.items()})


def _revive(annotation: Any, value: Any) -> Any:
    """Nested specs come back from JSON as dicts; give them their class again."""
    args = typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Spec) and isinstance(value, dict):
        return annotation.from_dict(value)
    if typing.get_origin(annotation) is list and args and isinstance(value, list):
        return [_revive(args[0], item) for item in value]
    return value


def describe_fields(cls: type) -> list[dict]:
    """The fields of a spec or config class as plain JSON, for forms, command line and docs (torch-free on the other side of a pipe)."""
    hints = typing.get_type_hints(cls)
    described = []
    for f in dataclasses.fields(cls):
        default = f.default if f.default is not MISSING else f.default_factory() if f.default_factory is not MISSING else None
        if isinstance(default, Spec):
            continue
        described.append({
            "name": f.name, "label": f.metadata.get("label", f.name), "help": f.metadata.get("help", ""), "term": f.metadata.get("term", ""),
            "unit": f.metadata.get("unit", ""), "low": f.metadata.get("low"), "high": f.metadata.get("high"),
            "choices": list(f.metadata["choices"]) if f.metadata.get("choices") else None, "advanced": bool(f.metadata.get("advanced")),
            "type": _type_name(hints[f.name]), "default": default if isinstance(default, (str, int, float, bool, list, dict)) else None,
            "required": f.default is MISSING and f.default_factory is MISSING})
    return described


def _type_name(annotation: Any) -> str:
    arms = [arm for arm in typing.get_args(annotation) if arm is not type(None)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType) and arms:
        return "number" if {*arms} == {int, float} else _type_name(arms[0])
    return (typing.get_origin(annotation) or annotation).__name__ if annotation is not Any else "any"
