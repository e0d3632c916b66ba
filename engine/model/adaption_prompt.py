"""Adaption prompts on a model: attentions are replaced while there is an adapter, and put back when the last one goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.keys import file_key
from engine.checkpoint.report import LoadReport
from engine.hosts.adaption_prompt import FAMILIES, LookingAttention
from engine.law import Tensors
from engine.methods.adaption_prompt import METHOD, AdaptionPromptConfig
from engine.model.graph import GraphTuner
from engine.model.lone import match


class AdaptionPrompts(GraphTuner):
    """PEFT class ``AdaptionPromptModel``. Several adapters may be heard at once, with strengths: they add."""

    inner = "model"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def place(self, name: str, config: AdaptionPromptConfig, file: Mapping[str, Tensor] | None, unknown_settings: Sequence[str],
              device: torch.device | None) -> LoadReport:
        if not isinstance(config, AdaptionPromptConfig):
            raise ValueError(f"Cannot combine adapters with different peft types. This model has adaption prompts, not {config.peft_type}.")
        family = FAMILIES.get(model_type := getattr(getattr(self.model, "config", None), "model_type", None))
        if family is None:
            raise ValueError(f"Unsupported model type for adaption prompt: '{model_type}'. There are {', '.join(FAMILIES)}.")
        for needed in ("adapter_len", "adapter_layers"):
            if getattr(config, needed) is None:
                raise ValueError(f"Please specify `{needed}` in `peft_config`.")
        config.target_modules = config.target_modules or family.attention
        found = [path for path, _ in self.model.named_modules() if path.endswith(f".{config.target_modules}")]
        if len(found) < config.adapter_layers:
            raise ValueError(f"Config specifies more adapter layers '{config.adapter_layers}' than the model has '{len(found)}'.")
        paths = found[-config.adapter_layers:]
        attentions = {path: self.model.get_submodule(path) for path in paths}
        plain = {path: a.model if isinstance(a, LookingAttention) else a for path, a in attentions.items()}
        specs = {path: METHOD.tensors(config, family.width(plain[path])) for path in paths}
        given, report = {}, LoadReport()
        if file is not None:
            given, report = match(self._by_our_keys(file, paths), {file_key(p, key): spec.shape for p in paths for key, spec in specs[p].items()},
                                  unknown_settings)
        ready: dict[str, Tensors] = {}
        for path in paths:
            weight, ready[path] = family.weight(plain[path]), {}
            dtype = weight.dtype if weight.is_floating_point() else torch.float32
            for key, spec in specs[path].items():
                tensor = torch.empty(spec.shape, dtype=dtype, device=device or weight.device)
                if file is None:
                    spec.init(tensor)
                else:
                    tensor.copy_(given[file_key(path, key)])
                ready[path][key] = nn.Parameter(tensor)
        for path in paths:                                     # nothing below can fail
            if plain[path] is attentions[path]:
                self._swap(path, LookingAttention(plain[path], family, self.stack))
            self.model.get_submodule(path).put(name, ready[path])
        self._paths[name] = paths
        return report

    def tensors(self, name: str) -> Tensors:
        return {file_key(path, key): p for path in self._paths[name] for key, p in self.model.get_submodule(path).tensors(name).items()}

    def train_only(self, name: str, on: bool) -> None:
        for parameter in self.tensors(name).values():
            parameter.requires_grad_(on)
