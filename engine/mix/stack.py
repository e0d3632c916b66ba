"""A base and the adapters on it: the one way in which a list of `StackEntry` becomes a running model.

Chat, export, verification and the command line all go through here, so what is exported is what was heard.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import BadAdapter, InvalidSpec, StudioError, UnsupportedLayer, WrongBase
from engine.model.peft_model import PeftModel
from engine.specs.jobs import StackEntry
from engine.store.home import safe_name
from engine.store.library import AdapterInfo, ModelInfo, read_adapter


@dataclass(frozen=True)
class Placed:
    """One adapter of the stack: the name under which the engine runs it, and what lies on disk."""

    name: str
    info: AdapterInfo


def check_entries(base: ModelInfo, entries: Sequence[StackEntry]) -> list[AdapterInfo]:
    """Read and check every adapter of a stack from its small files, before anything is loaded.

    Raises:
        BadAdapter: a folder is missing, damaged or hostile. WrongBase: an adapter was made for another base.
        InvalidSpec: a strength that is no number.
    """
    infos = []
    for entry in entries:
        if not math.isfinite(entry.strength):
            raise InvalidSpec(f"The strength of {Path(entry.adapter).name} is not a number.", do="Set it anew.")
        info = read_adapter(entry.adapter)
        if whole := [key for key, tensor in info.header.tensors.items() if ".lora_" in key and tensor.dtype not in ("F64", "F32", "F16", "BF16")]:
            raise BadAdapter(f"The adapter “{info.name}” cannot be used.", f"{len(whole)} of its tensors are in a format that adapters do not have.",
                             "Get it again, or choose another one.", details="\n".join(whole[:50]), path=str(info.path))
        _check_base(base, info)
        infos.append(info)
    return infos


def _check_base(base: ModelInfo, adapter: AdapterInfo) -> None:
    made_for = Path(adapter.base).name
    way_out = f"Choose the model {made_for}, or take the adapter out of the stack." if made_for else \
        "Choose the model that it was made for, or take the adapter out of the stack."
    if adapter.base_fingerprint and adapter.base_fingerprint != base.fingerprint:
        raise WrongBase(f"The adapter “{adapter.name}” was made for another model than {base.name}.",
                        "The weights that it was taught on are not these.", way_out, path=str(adapter.path))
    shapes = {name: entry.shape for header in base.headers for name, entry in header.tensors.items()}
    for path, (inside, outside) in _factor_sizes(adapter).items():
        shape = shapes.get(f"{path}.weight")
        if shape is not None and len(shape) == 2 and {inside, outside} - {None} - set(shape):
            raise WrongBase(f"The adapter “{adapter.name}” does not fit {base.name}.",
                            f"It expects other sizes in {path}: {inside} × {outside} instead of {shape[1]} × {shape[0]}.", way_out,
                            path=str(adapter.path))


def _factor_sizes(adapter: AdapterInfo) -> dict[str, tuple[int | None, int | None]]:
    """Module path → (columns of A, rows of B) of the low-rank pairs in the file; a hint, not the whole truth."""
    sizes: dict[str, tuple[int | None, int | None]] = {}
    for key, entry in adapter.header.tensors.items():
        path, dot, kind = key.removeprefix("base_model.model.").partition(".lora_")
        if dot and len(entry.shape) == 2:
            inside, outside = sizes.get(path, (None, None))
            if kind in ("A.weight", "embedding_A"):
                sizes[path] = (entry.shape[1], outside)
            elif kind in ("B.weight", "embedding_B"):
                sizes[path] = (inside, entry.shape[0])
    return sizes


class StackOnBase:
    """A base model that stays, and a stack on it that is exchanged as a whole.

    Args:
        model: the transformers model, in eval mode (on the meta device for a streaming merge).
        base: what lies on disk of it.

    Attributes:
        model: what runs: a `PeftModel`, or the plain base while the stack is empty.
        placed: the adapters in the stack's order.
    """

    def __init__(self, model, base: ModelInfo):
        self.model, self.base = model, base
        self.placed: list[Placed] = []

    def arrange(self, entries: Sequence[StackEntry]) -> None:
        """Put this stack on the base. Adapters that are already there are kept, not read again. All or nothing.

        An entry that is off stays loaded at strength 0. The same adapter may stand in the stack twice.

        Raises: as `check_entries`, and `BadAdapter` for an adapter of which only a part fits. The stack is then as before.
        """
        infos = check_entries(self.base, entries)
        spare = list(self.placed)
        chosen: list[Placed] = []
        fresh: list[Placed] = []
        before = dict(self.model.stack.entries) if self.placed else {}
        try:
            for info in infos:
                known = next((p for p in spare if _same(p.info, info)), None)
                if known is not None:
                    spare.remove(known)
                else:
                    known = Placed(_free_name(info.name, (p.name for p in (*self.placed, *fresh))), info)
                    self._load(known)
                    fresh.append(known)
                chosen.append(known)
        except BaseException:
            self._forget(fresh, before)
            raise
        self._forget(spare, {})
        self.placed = chosen
        if chosen:
            self.model.set_adapter({p.name: _heard(e) for p, e in zip(chosen, entries, strict=True)})

    def _load(self, placed: Placed) -> None:
        try:
            if isinstance(self.model, PeftModel):
                report = self.model.load_adapter(placed.info.path, placed.name)
            else:
                self.model = PeftModel.from_pretrained(self.model, placed.info.path, placed.name)
                report = self.model.load_report
        except UnsupportedLayer as problem:
            raise WrongBase(f"The adapter “{placed.info.name}” does not fit {self.base.name}.", f"{problem.what} {problem.why}".strip(),
                            "Choose the model that it was made for, or take the adapter out of the stack.", details=repr(problem)) from problem
        except StudioError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, re.error) as problem:      # settings that contradict the file or the model
            raise BadAdapter(f"The adapter “{placed.info.name}” cannot be used.", "Its settings contradict its contents.",
                             "Get it again, or choose another one.", details=repr(problem)) from problem
        if not self._has_sound_scales(placed.name):
            self._forget([placed], dict(self.model.stack.entries))
            raise BadAdapter(f"The adapter “{placed.info.name}” cannot be used.", "Its loudness (lora_alpha) is not a number.",
                             "Get it again, or choose another one.")
        if not report.complete:
            self._forget([placed], dict(self.model.stack.entries))
            raise BadAdapter(f"Only a part of the adapter “{placed.info.name}” fits this model.", report.sentence(),
                             "Choose the model that it was made for, or get the adapter again, whole.",
                             details="\n".join([*report.missing, *report.unexpected][:100]))

    def _has_sound_scales(self, name: str) -> bool:
        """Whether the low-rank form of an adapter can be computed at every layer that it sits on."""
        for layer in self.model.adapted.values():
            if (tenant := layer.tenants.get(name)) is not None:
                try:
                    factors = tenant.method.factors(layer.all_tensors(name), tenant.config, tenant.site)
                    if factors is not None and not math.isfinite(factors.scale):
                        return False
                except (TypeError, ValueError):
                    return False
        return True

    def _forget(self, which: Iterable[Placed], stack: dict[str, float]) -> None:
        """Delete adapters from the model; with none left the plain base comes out. ``stack`` is arranged where it is not empty."""
        if not isinstance(self.model, PeftModel):
            return
        for placed in which:
            if placed.name in self.model.peft_config:
                self.model.delete_adapter(placed.name)
        if not self.model.peft_config:
            self.model = self.model.unload().eval()
        elif stack := {name: strength for name, strength in stack.items() if name in self.model.peft_config}:
            self.model.set_adapter(stack)

    def set_strengths(self, strengths: Sequence[float]) -> None:
        """One number an entry, by position; 0 is off. Writes only those that differ. Raises `InvalidSpec`."""
        if len(strengths) != len(self.placed) or not all(math.isfinite(s) for s in strengths):
            raise InvalidSpec(f"The stack has {len(self.placed)} adapters, but {len(strengths)} strengths came.", do="Open the stack again.")
        for placed, strength in zip(self.placed, strengths, strict=True):
            if self.model.stack.strength(placed.name) != strength:
                self.model.stack.set_strength(placed.name, strength)

    @property
    def entries(self) -> list[StackEntry]:
        """The stack as it runs, as entries again."""
        strengths = dict(self.model.stack.entries) if self.placed else {}
        return [StackEntry(str(p.info.path), strengths[p.name]) for p in self.placed]

    def stamp(self) -> list[list]:
        """``[[name, fingerprint, strength], …]`` in order, as the engine holds it, not as anybody wished it."""
        if not self.placed:
            return []
        prints = {p.name: p.info.fingerprint for p in self.placed}
        return [[name, prints[name], strength] for name, strength in self.model.stack.entries]


def _heard(entry: StackEntry) -> float:
    return float(entry.strength) if entry.enabled else 0.0


def _same(a: AdapterInfo, b: AdapterInfo) -> bool:
    return a.path == b.path and a.fingerprint == b.fingerprint and a.config == b.config


def _free_name(folder: str, taken: Iterable[str]) -> str:
    """A name for the engine, after the adapter's folder: no dots, no word that torch needs itself, and unique."""
    from torch import nn

    taken = set(taken)
    name = safe_name(folder)
    name = f"{name}-adapter" if hasattr(nn.ModuleDict, name) else name
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}-{number}", number + 1
    return candidate
