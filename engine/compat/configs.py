"""PEFT's habits of configs, put on the engine's config classes. In the drop-in this module is also `peft.config`."""

from __future__ import annotations

import functools
import json
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.compat.names import PeftType, TaskType, lookup
from engine.configs import FORMAT_VERSION as __version__
from engine.law import PeftConfig
from engine.methods.prompt import PromptLearningConfig

PeftConfigMixin = PeftConfig
__all__ = ["PeftConfig", "PeftConfigMixin", "PromptLearningConfig"]
_SETS = ("target_modules", "exclude_modules", "feedforward_modules")


def _get_commit_hash(package: str) -> str | None:
    """The commit that a package was installed from, if pip noted one."""
    try:
        note = metadata.distribution(package).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    return json.loads(note or "{}").get("vcs_info", {}).get("commit_id")


def _version() -> str:
    if ".dev" not in __version__ or "@" in __version__:
        return __version__
    try:
        commit = _get_commit_hash("peft")
    except Exception:                      # a version's note must not keep anybody from saving: it is told, and stands in the file as UNKNOWN
        warnings.warn("A dev version of PEFT is used but there was an error while trying to determine the commit hash.")
        commit = None
    return f"{__version__}@{commit or 'UNKNOWN'}"


def dress(cls: type[PeftConfig], peft_type: str) -> None:
    """Let a config class be made, compared and asked as PEFT's: ``peft_type`` an enumeration, ``peft_version`` a field, names in sets."""
    native = cls.__init__

    @functools.wraps(native)
    def made(self: PeftConfig, *args: Any, peft_type: Any = None, peft_version: str | None = None, **kwargs: Any) -> None:
        task = kwargs.get("task_type")
        if task is not None and task not in list(TaskType):
            raise ValueError(f"Invalid task type: '{task}'. Must be one of the following task types: {', '.join(TaskType)}.")
        native(self, *args, **kwargs)
        self.peft_version = peft_version or _version()
        as_sets(self)
        if "runtime_config" in type(self).__dataclass_fields__ and self.runtime_config is None:
            self.runtime_config = lookup("LoraRuntimeConfig")()

    cls.__init__ = made
    cls.peft_type = PeftType(peft_type)


def as_sets(config: PeftConfig) -> None:
    """Lists of module names as the sets that they are in PEFT."""
    for name in _SETS if config.peft_type != PeftType.TRAINABLE_TOKENS else ():
        if isinstance(getattr(config, name, None), (list, tuple)):
            setattr(config, name, set(getattr(config, name)))


class ConfigViews:
    """What `PeftConfig` has in PEFT; see `engine.compat.views.attach`."""

    peft_version: str | None = None

    def to_dict(self: PeftConfig) -> dict[str, Any]:
        return {**ConfigViews.native["to_dict"](self), "peft_version": self.peft_version or __version__}

    def save_pretrained(self: PeftConfig, save_directory: str | Path, **kwargs: Any) -> None:
        if Path(save_directory).is_file():
            raise AssertionError(f"Provided path ({save_directory}) should be a directory, not a file")
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        inference, self.inference_mode = self.inference_mode, self.inference_mode
        data = self.to_dict()
        if kwargs.get("auto_mapping_dict") is not None:
            data["auto_mapping"] = kwargs["auto_mapping_dict"]
        self.inference_mode = inference
        (Path(save_directory) / "adapter_config.json").write_text(json.dumps(data, indent=2, sort_keys=True), encoding="utf-8")

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> PeftConfig:
        chosen = lookup("PEFT_TYPE_TO_CONFIG_MAPPING")[kwargs["peft_type"]] if "peft_type" in kwargs else cls
        return chosen(**_known(chosen, kwargs))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None, **kwargs: Any) -> PeftConfig:
        from engine.checkpoint.load import locate

        hub = {k: kwargs.pop(k) for k in ("revision", "cache_dir", "token", "local_files_only", "force_download") if k in kwargs}
        folder = locate(pretrained_model_name_or_path, subfolder, **{k: v for k, v in hub.items() if v is not None})
        data = cls.from_json_file(folder / "adapter_config.json")
        if "peft_type" not in data:
            raise TypeError(f"The {cls.__name__} config that is trying to be loaded is missing required keys: {{'peft_type'}}.")
        for name in kwargs.keys() & data.keys():
            data[name] = kwargs[name]
        return cls.from_peft_type(**data)

    @classmethod
    def from_json_file(cls, path_json_file: str | Path, **kwargs: Any) -> dict[str, Any]:
        data = json.loads(Path(path_json_file).read_text(encoding="utf-8"))
        data.pop("runtime_config", None)
        return data

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> PeftConfig:
        return cls(**kwargs)

    @property
    def is_prompt_learning(self) -> bool:
        return isinstance(self, PromptLearningConfig)

    @property
    def is_adaption_prompt(self) -> bool:
        return self.peft_type == "ADAPTION_PROMPT"


def _known(cls: type[PeftConfig], data: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(cls.unknown_keys(data))
    if unknown:
        warnings.warn(f"Unexpected keyword arguments {unknown} for class {cls.__name__}, these are ignored. This probably means that you're "
                      "loading a configuration file that was saved using a higher version of the library. Please upgrade it.")
    return {name: value for name, value in data.items() if name not in unknown}
