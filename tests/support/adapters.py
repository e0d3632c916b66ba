"""Random adapters that are really heard, in PEFT's format, made by code."""

from __future__ import annotations

from pathlib import Path


def make_adapter(folder: Path | str, base: Path | str, seed: int = 1, *, loud: float = 0.3, recipe: bool = True, **config) -> Path:
    """Write a LoRA whose A and B are both random (an untrained one would change nothing) and return its folder.

    ``config`` goes to `LoraConfig`; ``recipe`` notes the base's fingerprint as training does.
    """
    import torch

    from engine import LoraConfig, get_peft_model
    from engine.bases.load import load_model
    from engine.checkpoint.save import save_adapter
    from engine.store.atomic import write_json
    from engine.store.library import read_model

    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(load_model(base), LoraConfig(**config))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter.data, std=loud)
    save_adapter(model, "default", folder)
    if recipe:
        write_json(Path(folder) / "recipe.json", {"base_fingerprint": read_model(base).fingerprint})
    return Path(folder)
