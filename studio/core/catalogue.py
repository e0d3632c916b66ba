"""What the library holds: base models, and the adapters that fit them. No Qt, no torch; tensors are never read.

Looking takes time (an adapter's fingerprint is a hash over its file), so `look` may run in any thread and gives a `Snapshot`;
`adopt` makes it the present one and tells those who watch. `refresh` is both at once.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from collections.abc import Callable

from engine.errors import BadAdapter, StudioError
from engine.store.atomic import replacing_folder
from engine.store.home import Home, free_name
from engine.store.library import AdapterInfo, ModelInfo, read_adapter, read_model
from studio.core.history import DataSet, Run, datasets, read_runs
from studio.core.stack_document import same_path
from studio.core.text import frame as text

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "recipe.json", "README.md", "chat_template.jinja",
                 "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")     # all that an adapter folder needs


@dataclass(frozen=True)
class Snapshot:
    """The library at one moment, each list sorted by name."""

    models: tuple[ModelInfo, ...] = ()
    adapters: tuple[AdapterInfo, ...] = ()
    exports: tuple[ModelInfo, ...] = ()
    problems: tuple[StudioError, ...] = ()     # folders that cannot be used; facts["path"] says which
    runs: tuple[Run, ...] = ()                 # trainings, the newest first
    datasets: tuple[DataSet, ...] = ()


@dataclass(frozen=True)
class Module:
    """One place in the model where an adapter sits. ``layer`` is None outside the numbered layers."""

    path: str                              # "model.layers.3.self_attn.q_proj"
    layer: int | None
    parts: tuple[tuple[str, tuple[int, ...]], ...]     # ("lora_A", (16, 576)), …
    parameters: int

    @property
    def name(self) -> str:
        """The last parts of its path, without what all layers share."""
        return re.sub(r"^.*\.\d+\.", "", self.path)


class Catalogue:
    """The models and adapters of one home."""

    def __init__(self, home: Home):
        self.home = home
        self.snapshot = Snapshot()
        self.looked = False                # whether the library was looked at at all
        self._seen: dict[Path, tuple[tuple, object]] = {}
        self._watchers: list[Callable[[], None]] = []

    @property
    def models(self) -> list[ModelInfo]:
        return list(self.snapshot.models)

    @property
    def adapters(self) -> list[AdapterInfo]:
        return list(self.snapshot.adapters)

    @property
    def problems(self) -> list[StudioError]:
        return list(self.snapshot.problems)

    def subscribe(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher`` whenever a new snapshot was adopted."""
        self._watchers.append(watcher)

    # --- looking ---

    def refresh(self) -> None:
        """Look again, now."""
        self.adopt(self.look())

    def look(self) -> Snapshot:
        """Read the folders. Those whose files did not change are not read again. Safe in any thread, one at a time."""
        problems: list[StudioError] = []
        adapters = self._scan(self.home.adapters, read_adapter, problems)
        models = self._scan(self.home.models, read_model, problems)
        exports = self._scan(self.home.exports, read_model, [])        # an export in the making is no problem
        runs = read_runs(self.home)
        return Snapshot(tuple(models), tuple(adapters), tuple(exports), tuple(problems), runs, datasets(self.home, runs, adapters))

    def adopt(self, snapshot: Snapshot) -> None:
        """Make this the present state of the library, and tell."""
        unchanged = self.looked and _essence(snapshot) == _essence(self.snapshot)
        self.snapshot, self.looked = snapshot, True
        if not unchanged:
            for watcher in list(self._watchers):
                watcher()

    def _scan(self, folder: Path, reader: Callable, problems: list[StudioError]) -> list:
        found = []
        children = sorted(folder.iterdir(), key=lambda p: p.name.lower()) if folder.is_dir() else []
        for child in (c for c in children if c.is_dir() and not c.name.startswith(".")):
            stamp = _stamp(child)
            known = self._seen.get(child)
            if known is None or known[0] != stamp:
                try:
                    known = stamp, reader(child)
                except StudioError as problem:
                    known = stamp, problem
                self._seen[child] = known
            (problems if isinstance(known[1], StudioError) else found).append(known[1])
        return found

    # --- asking ---

    def model(self, path: Path | str | None) -> ModelInfo | None:
        return next((m for m in (*self.snapshot.models, *self.snapshot.exports) if same_path(m.path, path)), None)

    def adapter(self, path: Path | str | None) -> AdapterInfo | None:
        return next((a for a in self.snapshot.adapters if same_path(a.path, path)), None)

    def adapters_for(self, model: ModelInfo) -> list[AdapterInfo]:
        """The adapters that fit this model."""
        return [a for a in self.snapshot.adapters if self.misfit(a, model) is None]

    def home_of(self, adapter: AdapterInfo) -> ModelInfo | None:
        """The model that an adapter was made for, or any other that it fits; None if there is none in the library."""
        fitting = [m for m in self.snapshot.models if self.misfit(adapter, m) is None]
        return next((m for m in fitting if _named(adapter, m)), fitting[0] if fitting else None)

    def misfit(self, adapter: AdapterInfo, model: ModelInfo) -> str | None:
        """None if the adapter can sit on this model, else a sentence why not.

        It fits if it was taught on exactly these weights; where it does not say so, if it names this model; where it names no
        model of this library, if all its places exist in the model with the right shapes.
        """
        if adapter.base_fingerprint:
            fits = adapter.base_fingerprint == model.fingerprint
        elif any(_named(adapter, m) for m in self.snapshot.models):
            fits = _named(adapter, model)
        else:
            fits = _named(adapter, model) or _shapes_agree(adapter, model)
        return None if fits else text.misfit_other_model(adapter=adapter.name, base=base_name(adapter), model=model.name)

    def strangers(self) -> list[AdapterInfo]:
        """Adapters whose model is not in the library."""
        return [a for a in self.snapshot.adapters if self.home_of(a) is None]

    def runs_of(self, adapter: AdapterInfo) -> list[Run]:
        """The trainings that made this adapter."""
        return [run for run in self.snapshot.runs if same_path(run.spec.out, adapter.path)]

    def run(self, path: Path) -> Run | None:
        return next((run for run in self.snapshot.runs if run.path == path), None)

    # --- changing ---

    def bring_in(self, folder: Path) -> Path:
        """Copy an adapter folder into the library, checked first; returns its new place. Raises `BadAdapter` or `StudioError`.

        Only the files of PEFT's format are taken. A folder that lies in the library already is returned as it is.
        """
        info = read_adapter(folder)
        for known in self.snapshot.adapters:
            if same_path(known.path, folder) or (known.fingerprint, known.config) == (info.fingerprint, info.config):
                return known.path
        target = free_name(self.home.adapters, info.name)
        with replacing_folder(target) as temporary:
            for name in ADAPTER_FILES:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, temporary / name)
            if read_adapter(temporary).fingerprint != info.fingerprint:
                raise BadAdapter(f"The adapter {info.name} could not be copied.", "The copy differs from the original.", "Try again.")
        return target


def base_name(adapter: AdapterInfo) -> str:
    """The last part of what the adapter says about its base, e.g. "SmolLM2-135M-Instruct"."""
    return re.split(r"[\\/]", adapter.base.rstrip("\\/"))[-1] or text.unknown_model()


def modules(adapter: AdapterInfo) -> list[Module]:
    """Where an adapter sits, from its file's header alone, in the order of the layers."""
    grouped: dict[str, list[tuple[str, tuple[int, ...], int]]] = {}
    for name, tensor in adapter.header.tensors.items():
        path, part = _split(name)
        grouped.setdefault(path, []).append((part, tensor.shape, tensor.numel))
    found = [Module(path, _layer(path), tuple((part, shape) for part, shape, _ in parts), sum(n for *_, n in parts))
             for path, parts in grouped.items()]
    return sorted(found, key=lambda m: (m.layer is None, m.layer or 0, m.path))


_PART = re.compile(r"\.(lora_[A-Za-z_]+|hada_[A-Za-z0-9_]+|lokr_[A-Za-z0-9_]+|oft_[A-Za-z]+|ia3_l|vera_lambda_[bd]|modules_to_save"
                   r"|weight|bias)(\.weight|\.default)?(\.weight)?$")


def _split(tensor: str) -> tuple[str, str]:
    """"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" → ("model.layers.0.self_attn.q_proj", "lora_A")."""
    name = tensor.removeprefix("base_model.model.")
    if found := _PART.search(name):
        return name[:found.start()], found.group(1)
    return name.rpartition(".")[0] or name, name.rpartition(".")[2]


def _layer(path: str) -> int | None:
    found = re.search(r"\.(\d+)\.", path)
    return int(found.group(1)) if found else None


def _named(adapter: AdapterInfo, model: ModelInfo) -> bool:
    return bool(adapter.base) and (same_path(adapter.base, model.path) or base_name(adapter).casefold() == model.name.casefold())


def _shapes_agree(adapter: AdapterInfo, model: ModelInfo) -> bool:
    """Every low-rank pair has a weight of its in and out size in the model. False for kinds whose shapes say nothing."""
    shapes = {name.removesuffix(".weight"): t.shape for h in model.headers for name, t in h.tensors.items()}
    pairs = [(m.path, dict(m.parts)) for m in modules(adapter)]
    if not pairs:
        return False
    return all("lora_A" in parts and "lora_B" in parts and path in shapes and len(shapes[path]) == 2
               and shapes[path] == (parts["lora_B"][0], parts["lora_A"][-1]) for path, parts in pairs)


def _stamp(folder: Path) -> tuple:
    """Changes whenever a file that matters changes."""
    try:
        entries = [(e.name, e.stat()) for e in os.scandir(folder) if e.is_file()]
    except OSError:
        return ()
    return tuple(sorted((name, s.st_mtime_ns, s.st_size) for name, s in entries
                        if name.endswith((".json", ".safetensors", ".bin", ".jinja"))))


def _essence(snapshot: Snapshot) -> tuple:
    return (tuple((m.path, m.fingerprint) for m in snapshot.models), tuple((a.path, a.fingerprint, a.base, str(a.recipe)) for a in snapshot.adapters),
            tuple((m.path, m.fingerprint) for m in snapshot.exports), tuple(str(p) for p in snapshot.problems),
            tuple((r.path, r.state, r.checkpoints) for r in snapshot.runs), snapshot.datasets)
