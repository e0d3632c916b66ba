"""The page that stands beside a saved adapter on the Hub (``README.md``): a head that the Hub reads, and what a person wrote below it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.configs import FORMAT_VERSION
from engine.store.atomic import write_text

if TYPE_CHECKING:
    from engine.model.peft_model import PeftModel

_VERSIONS, _PROCEDURE = "### Framework versions", "## Training procedure"
_QUANTIZED = "The following `{method}` quantization config was used during training:"


def write_card(model: "PeftModel", folder: Path | str) -> None:
    """Write ``README.md`` in ``folder``, or bring it up to date: what a person wrote in it stays.

    Tags, base model, task, the quantization of the base and the version of the format are filled in (PEFT method
    ``create_or_update_model_card``, which forgets the quantization). Nothing is asked of the network.
    """
    from huggingface_hub import ModelCard

    path = Path(folder) / "README.md"
    card = ModelCard(path.read_text(encoding="utf-8") if path.exists() else _new(model))
    base = model.get_base_model()
    card.data.library_name = "peft"
    card.data.tags = sorted({*(getattr(base, "model_tags", None) or ()), *(card.data.tags or ()), *_tags(model)})
    if not card.data.pipeline_tag and (task := _task(model)):
        card.data.pipeline_tag = task
    if name := _base_name(model):
        card.data.base_model = name
    lines = card.text.strip().splitlines()
    if (quantization := _quantization(base)) and (first := _QUANTIZED.format(method=quantization.pop("quant_method", "bitsandbytes"))) not in lines:
        lines = _below(lines, _PROCEDURE, [first, *(f"- {key}: {value}" for key, value in quantization.items())])
    if (version := f"- PEFT {FORMAT_VERSION}") not in lines:
        lines = _below(lines, _VERSIONS, [version])
    card.text = "\n" + "\n".join(lines) + "\n"
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_text(path, str(card))


def _new(model: "PeftModel") -> str:
    kinds = sorted({type(config).__name__.removesuffix("Config") for config in model.peft_config.values()})
    on = f" for `{name}`" if (name := _base_name(model)) else ""
    return f"---\nlibrary_name: peft\n---\n\n# {' and '.join(kinds)} adapter{on}\n\nIts settings are in `adapter_config.json`.\n"


def _tags(model: "PeftModel") -> set[str]:
    name, base = _base_name(model), model.get_base_model()
    return {*([f"base_model:adapter:{name}"] if name else ()), *(["transformers"] if hasattr(base, "config") else ()),
            *(["lora"] if any(config.peft_type == "LORA" for config in model.peft_config.values()) else ())}


def _task(model: "PeftModel") -> str | None:
    tasks = {getattr(config.task_type, "value", config.task_type) for config in model.peft_config.values()}
    return "text-generation" if tasks == {"CAUSAL_LM"} else None


def _base_name(model: "PeftModel") -> str:
    """The base's name on the Hub. A path on this computer is nobody else's business and no name there: it is left out."""
    name = str(getattr(getattr(model.get_base_model(), "config", None), "_name_or_path", "") or "")
    return "" if os.path.isabs(name) or name.startswith((".", "~")) or "\\" in name else name


def _quantization(base: Any) -> dict[str, Any]:
    settings = getattr(getattr(base, "config", None), "quantization_config", None)
    found = settings.to_dict() if hasattr(settings, "to_dict") else dict(settings or {})
    return {key: getattr(value, "value", value) for key, value in found.items() if not key.startswith("_")}


def _below(lines: list[str], heading: str, block: list[str]) -> list[str]:
    """The lines with a block below its heading, which is added at the end if it is not there."""
    if heading not in lines:
        return [*lines, "", heading, "", *block]
    at = lines.index(heading) + 1
    while at < len(lines) and not lines[at].strip():
        at += 1
    return [*lines[:at], *block, *([] if at < len(lines) and lines[at].startswith("- ") else [""]), *lines[at:]]
