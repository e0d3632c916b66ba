"""The page that stands beside a saved adapter on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard, ModelCardData

from engine.methods.base import FORMAT_VERSION

if TYPE_CHECKING:
    from engine.model.peft_model import PeftModel


def write_card(model: "PeftModel", folder: Path) -> None:
    """Write or bring up to date ``README.md`` in ``folder``: what a person wrote below the head stays."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    head, body = {}, text
    if text.startswith("---\n"):
        card = ModelCard(text, ignore_metadata_errors=True)
        head, body = card.data.to_dict(), card.text
    config = next(iter(model.peft_config.values()))
    base = getattr(getattr(model.get_base_model(), "config", None), "_name_or_path", None)
    tags = {*head.get("tags", ()), *(["transformers"] if hasattr(model.get_base_model(), "config") else [])}
    if config.peft_type == "LORA":
        tags.add("lora")
    if base:
        tags.add(f"base_model:adapter:{base}")
        head["base_model"] = base
    if getattr(config, "task_type", None) == "CAUSAL_LM":
        head["pipeline_tag"] = "text-generation"
    head |= {"library_name": "peft", "tags": sorted(tags)}
    body = body.strip() or f"# {type(config).__name__.removesuffix('Config')} adapter\n\nSettings are in `adapter_config.json`."
    if "### Framework versions" not in body:
        body += f"\n\n### Framework versions\n\n- PEFT {FORMAT_VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(f"---\n{ModelCardData(**head).to_yaml()}\n---\n\n{body}\n", encoding="utf-8")
