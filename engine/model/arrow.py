"""A model in which Arrow sends each input to the LoRAs that know about it (see `engine.methods.arrow`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from engine.methods.lora import LoraConfig
from engine.methods.lora_settings import ArrowConfig
from engine.model.peft_model import PeftModel

ROUTER, TASK, GENERAL = "arrow_router", "task_", "gks_"


def create_arrow_model(base_model: nn.Module, task_specific_adapter_paths: Sequence[Path | str], arrow_config: ArrowConfig,
                       general_adapter_paths: Sequence[Path | str] | None = None, **how: Any) -> PeftModel:
    """``base_model`` with these LoRAs as experts, named ``task_0`` …, and Arrow active (PEFT function of the same name).

    Experts that are loaded or deleted later are heard from the next pass on.

    Args:
        task_specific_adapter_paths: folders, or ``user/name/sub-folder`` on the Hub. arrow_config: its names are filled in.
        general_adapter_paths: what GenKnowSub takes out of the experts (``use_gks``); become ``gks_0`` ….
        how: arguments of `PeftModel.load_adapter`.

    Raises:
        ValueError: no experts, GenKnowSub without general adapters, or adapters of different shapes; the model is the plain base then.
        TypeError: one sits on another layer than a linear one.
    """
    if not task_specific_adapter_paths:
        raise ValueError("`task_specific_adapter_paths` should contain at least one adapter path")
    if arrow_config.use_gks and not general_adapter_paths:
        raise ValueError("You should provide general LoRA paths if you want to use GenKnowSub.")
    general = general_adapter_paths if arrow_config.use_gks else ()
    sources = {f"{kind}{i}": source for kind, paths in ((TASK, task_specific_adapter_paths), (GENERAL, general)) for i, source in enumerate(paths)}
    (first, source), *others = sources.items()
    model = PeftModel.from_pretrained(base_model, adapter_name=first, **_place(source, how))
    try:
        for name, source in others:
            model.load_adapter(adapter_name=name, **_place(source, how))
        targets, rank = _common_shape(model, list(sources))
        arrow_config.task_adapter_names = [name for name in sources if name.startswith(TASK)]
        arrow_config.gks_adapter_names = [name for name in sources if name.startswith(GENERAL)]
        model.add_adapter(ROUTER, LoraConfig(arrow_config=arrow_config, target_modules=targets, r=rank))
    except BaseException:
        model.unload()
        raise
    model.set_adapter(ROUTER)
    return model


def _place(source: Path | str, how: dict[str, Any]) -> dict[str, Any]:
    parts = str(source).strip("/").split("/")
    if Path(source).is_dir() or str(source).startswith((".", "/")) or len(parts) <= 2:
        return {"model_id": source, **how}
    return {"model_id": "/".join(parts[:2]), "subfolder": "/".join(parts[2:]), **how}


def _common_shape(model: PeftModel, names: Sequence[str]) -> tuple[list[str], int]:
    """(names of the layers that all these adapters sit on, their rank)."""
    shapes: dict[str, dict[str, tuple[int, int, int]]] = {}
    for name in names:
        for path, tenant in model.tenants(name).items():
            f = tenant.method.factors(model.adapted[path].all_tensors(name), tenant.config, tenant.site)
            if tenant.site.kind != "linear" or f is None:
                raise TypeError(f"LoRA adapters must only target Linear-like layers, and be plain LoRAs. Found: adapter '{name}' "
                                f"({tenant.method.title}) on module '{path}' of kind {tenant.site.kind}.")
            shapes.setdefault(name, {})[path] = (len(f.A), f.A.shape[1], len(f.B))
    first = shapes[names[0]]
    for name in names[1:]:
        if {s[0] for s in shapes[name].values()} != {s[0] for s in first.values()}:
            raise ValueError(f"[{name}] rank mismatch: all adapters must have the rank of {names[0]}, {next(iter(first.values()))[0]}.")
        if shapes[name].keys() != first.keys():
            raise ValueError(f"[{name}] target_modules mismatch: all adapters must sit on the layers of {names[0]}.")
        if shapes[name] != first:
            raise ValueError(f"[{name}] shape mismatch: all adapters must have the shapes of {names[0]}.")
    return sorted({path.rpartition(".")[2] for path in first}), next(iter(first.values()))[0]
