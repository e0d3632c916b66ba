"""What all adapters' settings have in common: PEFT's field names and defaults, and its ``adapter_config.json``. No torch."""

from __future__ import annotations

import dataclasses
import enum
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from engine.errors import BadAdapter
from engine.specs.fields import knob
from engine.store.atomic import write_json
from engine.store.hub import locate
from engine.store.library import read_json

FORMAT_VERSION = "0.21.2"                  # the PEFT release whose file format is written

# Where `target_modules` is left open, by the model's family (`config.model_type`), as PEFT chooses: see `engine.law.Method.layers`
MLP_OUT = dict.fromkeys(["gpt2", "gpt_bigcode"], ["mlp.c_proj"])           # of methods that want as many outputs as inputs, or nearly
QV_OF_PHI = {"phi": ["q_proj", "v_proj"]}
_MANY = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
MANY_LAYERS = {"t5": ["q", "k", "v", "o", "wi", "wo"], "mt5": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"], "bart": _MANY, "opt": _MANY,
               "deberta-v2": ["query_proj", "key_proj", "value_proj", "dense"]}


@dataclass
class PeftConfig:
    """Base of all configs (PEFT class ``PeftConfig``); serialises to PEFT's ``adapter_config.json``."""

    peft_type: ClassVar[str] = ""
    runtime_only: ClassVar[frozenset[str]] = frozenset()      # fields that are never written

    task_type: str | None = None
    auto_mapping: dict | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values, sorted by name; sets become sorted lists (stable files), settings within settings become dicts."""
        def plain(value: Any) -> Any:
            if dataclasses.is_dataclass(value):
                return dataclasses.asdict(value)
            if isinstance(value, enum.Enum):
                return value.value
            return sorted(value) if isinstance(value, (set, frozenset)) else value

        data = {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in self.runtime_only}
        return dict(sorted({**data, "peft_type": self.peft_type, "peft_version": FORMAT_VERSION}.items()))

    def save_pretrained(self, folder: Path | str) -> None:
        """Write ``adapter_config.json`` into ``folder``, marked for inference as PEFT does."""
        write_json(Path(folder) / "adapter_config.json", {**self.to_dict(), "inference_mode": True})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "PeftConfig":
        """Build from JSON values; keys of other PEFT releases are dropped (`unknown_keys` names them)."""
        names = {f.name for f in dataclasses.fields(cls)} - cls.runtime_only
        return cls(**{k: v for k, v in data.items() if k in names})

    @classmethod
    def unknown_keys(cls, data: dict[str, Any]) -> list[str]:
        return sorted(set(data) - {f.name for f in dataclasses.fields(cls)} - {"peft_type", "peft_version"})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Path | str, subfolder: str | None = None, **kwargs: Any) -> "PeftConfig":
        """Read ``adapter_config.json``. On `PeftConfig` itself the right subclass is chosen by ``peft_type``.

        Args:
            pretrained_model_name_or_path: a folder, or a name on the Hub. subfolder: within it.
            kwargs: ``revision``, ``cache_dir``, ``token`` …; and values of fields, instead of those in the file.

        Raises:
            BadAdapter: no such file, unreadable, or of a method that is not known here. Unreachable: the Hub cannot be asked.
        """
        from engine.methods.registry import config_class

        folder = locate(pretrained_model_name_or_path, subfolder, only_config=True, **kwargs)
        data = read_json(folder / "adapter_config.json", BadAdapter)
        chosen = config_class(data.get("peft_type")) if cls.peft_type == "" else cls
        own = {f.name for f in dataclasses.fields(chosen)} - {"revision"}
        try:
            return chosen.from_dict({**data, **{k: v for k, v in kwargs.items() if k in own}})
        except (TypeError, ValueError) as problem:
            raise BadAdapter(f"The adapter {folder.name} has impossible settings.", str(problem), "Get it again.") from problem


@dataclass
class TargetedConfig(PeftConfig):
    """Config of a method that sits on chosen layers; the fields decide which (see `engine.model.targets`)."""

    custom_modules: ClassVar[dict[type, Any]] = {}            # class of module → what makes the target of one (`engine.compat.custom`)
    positive: ClassVar[tuple[str, ...]] = ()                  # settings that are whole numbers from 1; of a pattern, its values

    target_modules: list[str] | str | None = knob(
        None, label="Layers", term="target_modules", advanced=True,
        help="Which layers learn: names or endings, a regular expression, or “all-linear”.")
    exclude_modules: list[str] | str | None = knob(None, label="Layers left out", term="exclude_modules", advanced=True,
                                                   help="Layers that never learn, by name or regular expression.")
    layers_to_transform: list[int] | int | None = knob(None, label="Only these depths", term="layers_to_transform", advanced=True,
                                                       help="Numbers of the blocks that learn; empty means all.")
    layers_pattern: list[str] | str | None = knob(None, label="Name of the block list", term="layers_pattern", advanced=True,
                                                  help="Name of the list of blocks, where it is unusual.")
    modules_to_save: list[str] | None = knob(None, label="Layers learned whole", term="modules_to_save", advanced=True,
                                             help="Layers that are copied and trained completely (large files).")

    def __post_init__(self) -> None:
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple, set, frozenset)):
                setattr(self, name, sorted(set(value)))
        if isinstance(self.target_modules, str) and self.target_modules.lower() != "all-linear":
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` cannot be used when `target_modules` is a str.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("When `layers_pattern` is specified, `layers_to_transform` must also be specified.")
        if isinstance(self.modules_to_save, str):
            self.modules_to_save = [self.modules_to_save]
        for name in self.positive:
            value = getattr(self, name)
            for number in (value or {}).values() if name.endswith("_pattern") else [value]:
                if not isinstance(number, int) or number < 1:
                    raise ValueError(f"`{name}` should be a positive integer value but the value passed is {number}.")


def by_pattern(path: str, patterns: dict[str, Any], default: Any) -> Any:
    """The value of the first pattern that matches the module path or its end (PEFT's ``rank_pattern`` rule)."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default
