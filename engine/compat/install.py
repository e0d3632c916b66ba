"""`install_as_peft`: `import peft` gives this engine, with PEFT's module paths.

One finder answers for `peft` and everything below it. A module of PEFT's holds no names of its own: what is asked of it is looked
up in one table (`engine.compat.names`), so a name can be imported from every path that PEFT ever had for it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from types import ModuleType
from typing import Any

__version__ = "0.22.0"                     # the oldest PEFT that today's transformers accepts; files say the format's own version

_TOP = {"auto", "config", "functional", "helpers", "import_utils", "mapping", "mapping_func", "mixed_model", "optimizers", "peft_model",
        "tuners", "utils"}
_OPTIMIZERS = {"lorafa", "loraplus", "riemannian"}
_UTILS = {"constants", "error", "hotswap", "incremental_pca", "integrations", "loftq_utils", "merge_utils", "other", "peft_types",
          "quantization_utils", "save_and_load", "transformers_weight_conversion", "warning"}
_TUNERS = {"_buffer_dict", "adalora", "adamss", "adaption_prompt", "beft", "boft", "c3a", "cartridge", "cpt", "deft", "delora", "fourierft",
           "frod", "glora", "gralora", "hira", "hra", "ia3", "lily", "ln_tuning", "loha", "lokr", "lora", "lycoris_utils", "miss",
           "mixed", "multitask_prompt_tuning", "oft", "osf", "p_tuning", "peanut", "poly", "prefix_tuning", "prompt_tuning", "psoft",
           "pvera", "randlora", "road", "shadow", "shira", "supertuning", "tinylora", "trainable_tokens", "tuners_utils", "unilora",
           "vblora", "vera", "waveft", "xlora"}
_PARTS = {"arrow", "config", "conversion", "corda", "eva", "intruders", "layer", "layers", "loraga", "model", "monteclora", "tp_layer",
          "utils", "variants", "velora"}


def _known(path: str) -> bool:
    parts = path.split(".")[1:]
    below = {"optimizers": _OPTIMIZERS, "utils": _UTILS, "tuners": _TUNERS}
    return (not parts or parts[0] in _TOP) and (len(parts) < 2 or parts[1] in below.get(parts[0], ())) and (
        len(parts) < 3 or parts[0] == "tuners" and parts[2] in _PARTS) and len(parts) < 4


class PeftModule(ModuleType):
    """A module of PEFT's, whose names are looked up when they are asked for."""

    def __getattr__(self, name: str) -> Any:
        from engine.compat.names import lookup

        path = f"{self.__name__}.{name}"
        found = importlib.import_module(path) if _known(path) else lookup(name, self.__name__)
        setattr(self, name, found)
        return found

    def __dir__(self) -> list[str]:
        from engine.compat.names import public

        return sorted({*super().__dir__(), *public()})


class _Finder(DistributionFinder, Loader):
    """Finds `peft` and all below it, and the metadata that tells its version."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != "peft" or not _known(fullname):
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return PeftModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__path__, module.__version__ = [], __version__
        if module.__name__ == "peft":
            from engine.compat.names import public

            module.__all__ = public()
        elif module.__name__ == "peft.config":               # its names may be replaced from outside and must be heard here
            sys.modules["peft.config"] = importlib.import_module("engine.compat.configs")

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> list[Distribution]:
        return [_Metadata()] if context is not None and context.name == "peft" else []


class _Metadata(Distribution):
    def read_text(self, filename: str) -> str | None:
        return f"Metadata-Version: 2.1\nName: peft\nVersion: {__version__}\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        return path


def install_as_peft() -> ModuleType:
    """Put the engine in PEFT's place for this process; returns the module `peft`. Calling it again changes nothing.

    Call it before anything imports `peft`.

    Raises:
        RuntimeError: the package `peft` itself has been imported already: its classes are in use and cannot be exchanged.
    """
    present = sys.modules.get("peft")
    if isinstance(present, PeftModule):
        return present
    if present is not None:
        raise RuntimeError("The package peft is in use already and cannot be replaced: call install_as_peft() before anything imports peft.")
    sys.meta_path.insert(0, _Finder())
    importlib.invalidate_caches()
    _forget_answers()
    module = importlib.import_module("peft")
    from engine.compat.views import attach_all

    attach_all()
    return module


def _forget_answers() -> None:
    """What transformers and accelerate have found out about `peft` before."""
    for name in ("transformers.utils.import_utils", "accelerate.utils.imports"):
        module = sys.modules.get(name)
        for function in ("is_peft_available", "is_peft_greater_or_equal"):
            clear = getattr(getattr(module, function, None), "cache_clear", None)
            if clear is not None:
                clear()
