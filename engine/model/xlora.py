"""X-LoRA on a model: its experts come in as adapters of their own, and each pass is run twice (see `engine.methods.xlora`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.load import locate, read_tensors
from engine.checkpoint.report import LoadReport
from engine.hosts.adapted import Adapted
from engine.law import Method, PeftConfig
from engine.methods.registry import law
from engine.methods.xlora import METHOD, SCALINGS, XLoraConfig
from engine.model.targets import Held, Plan, Target
from engine.model.tuner import Tuner


class XLoraTuner(Tuner):
    """A tuner with one X-LoRA adapter, and its experts under the names "0", "1" … (PEFT class ``XLoraModel``)."""

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self._name = ""                    # of the X-LoRA adapter
        self._latest: Tensor | None = None
        self._log: list[Tensor] = []
        self._logging = self._looking = False
        self._hooks: list[Any] = []

    @property
    def xlora_config(self) -> XLoraConfig:
        """Settings of the X-LoRA adapter; those of its scalings may be changed at any time."""
        return self.peft_config[self._name]

    # --- coming and going ---

    def admit(self, name: str, config: PeftConfig, *, trainable: bool, **how: Any) -> LoadReport:
        """The experts first, then the network that decides. Changes nothing if it raises.

        Raises:
            ValueError: the model keeps a cache (``use_cache``), which the second pass would spoil; another kind of adapter; no experts.
        """
        if not isinstance(config, XLoraConfig) or self._name:
            raise ValueError("A model with X-LoRA holds that one adapter and its experts: load others onto a model of their own.")
        if getattr(getattr(self.model, "config", None), "use_cache", False):
            raise ValueError("`use_cache` must be False: X-LoRA reads every text twice, so set model.config.use_cache = False.")
        if not config.adapters:
            raise ValueError("X-LoRA needs its experts: `adapters={\"name\": folder, …}`.")
        with ExitStack() as failing:
            failing.callback(self.leave)
            for number, source in enumerate(config.adapters.values()):
                self._expert(str(number), source, config.use_trainable_adapters and trainable, how.get("autocast", True))
            report = super().admit(name, config, trainable=trainable, **how)
            failing.pop_all()
        self._name = name
        self._hooks = [self.model.register_forward_pre_hook(self._look, with_kwargs=True),
                       self.model.register_forward_hook(self._forget, always_call=True)]
        return report

    def _expert(self, name: str, source: Any, trainable: bool, autocast: bool) -> None:
        folder = locate(source)
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = not trainable
        super().admit(name, config, trainable=trainable, autocast=autocast, file=read_tensors(folder))
        for tenant in (tenants := self.tenants(name)).values():
            if tenant.method.factors(self.layers[tenant.site.path].all_tensors(name), tenant.config, tenant.site) is None:
                raise ValueError(f"X-LoRA currently does not support {law(config).title}: its experts have to be low-rank adapters.")
        if not tenants:
            raise ValueError(f"The adapter {source} has nothing that X-LoRA could use.")

    def plan(self, method: Method, config: PeftConfig, held: Held) -> Plan:
        """X-LoRA itself sits wherever an expert does."""
        if not isinstance(config, XLoraConfig):
            return super().plan(method, config, held)
        found = Plan()
        for path, layer in held:
            if isinstance(layer, Adapted):
                found.add(Target(path, layer, layer.host, layer.site), method, config)
        return found

    def leave(self, merged: list[str] | None = None) -> nn.Module:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._name = [], ""
        return super().leave(merged)

    # --- the two passes ---

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return super().generate(*args, **{**kwargs, "use_cache": False})

    def _look(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before a pass: find out how strongly each expert is to be heard in it."""
        if self._looking or self._name not in self.stack.heard():
            return
        cfg, sites = self.xlora_config, self.tenants(self._name)
        inputs = next(t for t in (kwargs.get("input_ids"), *args[:1], kwargs.get("inputs_embeds")) if t is not None)
        alike = cfg.scaling_pass_value if cfg.scaling_pass_value is not None else 1 / len(cfg.adapters)
        self.stack.extras = {**self.stack.extras, SCALINGS: torch.full(
            (*inputs.shape[:2], len(sites), len(cfg.adapters)), alike, device=inputs.device)}
        self._looking = True
        try:
            with torch.no_grad():
                seen = self.model.forward(*args, **{k: v for k, v in kwargs.items() if k != "labels"} | {
                    "output_hidden_states": True, "return_dict": True})
        finally:
            self._looking = False
        self._latest = METHOD.scalings(self.tensors(self._name), cfg, seen.hidden_states[-1], len(sites), self.training)
        self.stack.extras[SCALINGS] = self._latest
        self._log += [self._latest] if self._logging else []

    def _forget(self, model: nn.Module, args: tuple, output: Any) -> None:
        self.stack.extras = {key: value for key, value in self.stack.extras.items() if key != SCALINGS}

    # --- PEFT's methods for scalings ---

    def set_topk_lora(self, value: int | None) -> None:
        """Only so many experts are heard for each word; None: all."""
        self.xlora_config.top_k_lora = value

    def set_global_scaling_weight(self, weight: float) -> None:
        """Scale all experts."""
        self.xlora_config.global_scaling_weight = weight

    def get_global_scaling_weight(self) -> float:
        """What all experts are scaled by."""
        return self.xlora_config.global_scaling_weight

    def set_scaling_pass_value(self, value: float | None) -> None:
        """How strongly all experts are heard in the first pass; None: one part each."""
        self.xlora_config.scaling_pass_value = 1 / len(self.xlora_config.adapters) if value is None else value

    def get_latest_scalings(self) -> Tensor | None:
        """Those of the latest pass, ``(batch, seq, layers, experts)``; None before the first."""
        return self._latest

    def enable_scalings_logging(self) -> None:
        """Keep the scalings of every pass from now on."""
        self._logging = True

    def disable_scalings_logging(self) -> None:
        """Keep no more; what was kept stays."""
        self._logging = False

    def clear_scalings_log(self) -> None:
        """Forget what was kept."""
        self._log.clear()

    def get_scalings_log(self) -> list[Tensor]:
        """What was kept, in order, each ``(batch, seq, layers, experts)``."""
        return list(self._log)

    def get_bucketed_scalings_log(self) -> dict[int, tuple[list[int], list[Tensor]]]:
        """What was kept, by length of the text: its numbers in the log, and the scalings."""
        buckets: dict[int, tuple[Sequence[int], Sequence[Tensor]]] = {}
        for number, scalings in enumerate(self._log):
            numbers, kept = buckets.setdefault(scalings.shape[1], ([], []))
            numbers.append(number), kept.append(scalings)
        return buckets
