"""AdaLoRA's schedule, which takes ranks away, and what it adds to the loss (Zhang et al. 2023, arXiv 2303.10512)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class RankSchedule:
    """Takes ranks away in the course of training, the least important first, over all layers together (Zhang et al. 2023, section 3.2).

    Until ``tinit`` nothing happens; then the number of ranks falls by a cubic curve from ``init_r`` to ``target_r`` a layer, and stays
    there for the last ``tfinal`` steps. A rank is taken away by setting its E to zero, so it can come back while the number still falls.

    Args:
        config: the adapter's; its ``rank_pattern`` is kept up to date.
        layers: module path → the live tensors ``lora_A``, ``lora_E``, ``lora_B``.
    """

    def __init__(self, config: Any, layers: Mapping[str, Tensors]):
        self.config, self.layers = config, dict(layers)
        self.ranks = sum(len(p["lora_E"]) for p in self.layers.values())
        self.target = min(self.ranks, config.target_r * len(self.layers))
        self.importance: dict[tuple[str, str], Tensor] = {}   # running means of |p · ∂loss/∂p|, by path and tensor
        self.doubt: dict[tuple[str, str], Tensor] = {}        # and of how far it strays from them

    def state(self) -> dict[str, Tensor]:
        """All that a run needs to go on, by name."""
        found = {f"{kind}:{path}:{name}": t for kind, means in (("importance", self.importance), ("doubt", self.doubt))
                 for (path, name), t in means.items()}
        return found | {f"left:{key}": torch.tensor(left) for key, left in (self.config.rank_pattern or {}).items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for key, tensor in state.items():
            kind, path, *name = key.split(":")
            if kind == "left":
                self.config.rank_pattern = {**(self.config.rank_pattern or {}), path: tensor.tolist()}
            else:
                getattr(self, kind)[path, name[0]] = tensor.to(self.layers[path][name[0]].device)

    def budget(self, step: int) -> tuple[int, bool]:
        """How many ranks there may be after this step, and whether it takes any away."""
        cfg = self.config
        if step <= cfg.tinit:
            return self.ranks, False
        end = cfg.total_step - cfg.tfinal
        if step > end:
            return self.target, True
        remaining = 1 - (step - cfg.tinit) / (end - cfg.tinit)
        return int((self.ranks - self.target) * remaining ** 3 + self.target), step % cfg.deltaT == 0 or step == end

    @torch.no_grad()
    def update_and_allocate(self, global_step: int) -> None:
        """To be called in every step after the optimizer's and before the gradients are cleared (PEFT: ``AdaLoraModel.update_and_allocate``)."""
        end = self.config.total_step - self.config.tfinal
        if global_step > end:
            self._mask()
            return
        if global_step < end:
            self._observe()
        budget, takes = self.budget(global_step)
        if takes:
            self._choose(budget)
            self._mask()
        if global_step == end:
            self.importance.clear(), self.doubt.clear()

    def _observe(self) -> None:
        beta1, beta2 = self.config.beta1, self.config.beta2
        for path, p in self.layers.items():
            for name in ("lora_A", "lora_E", "lora_B"):
                tensor, key = p[name], (path, name)
                now = torch.zeros_like(tensor) if tensor.grad is None else (tensor * tensor.grad).abs()
                mean = self.importance[key] = beta1 * self.importance.get(key, torch.zeros_like(now)) + (1 - beta1) * now
                self.doubt[key] = beta2 * self.doubt.get(key, torch.zeros_like(now)) + (1 - beta2) * (now - mean).abs()

    def _scores(self, path: str) -> Tensor:
        """Of each rank at one layer: its value's, and the means of its two directions'."""
        def score(name: str) -> Tensor:
            mean = self.importance.get((path, name))
            return torch.zeros_like(self.layers[path][name]) if mean is None else mean * self.doubt[path, name]

        return score("lora_E").flatten() + (score("lora_A").mean(1) + score("lora_B").mean(0))

    def _choose(self, budget: int) -> None:
        """Keep exactly ``budget`` ranks. (PEFT keeps those above a threshold: none of several that tie at it; it fails where none is to go.)"""
        scores = {path: self._scores(path) for path in self.layers}
        joined = torch.cat([s.float().cpu() for s in scores.values()])
        kept = torch.zeros(len(joined), dtype=torch.bool)
        kept[joined.topk(budget).indices] = True
        parts = kept.split([len(s) for s in scores.values()])
        self.config.rank_pattern = {f"{path}.lora_E": part.tolist() for path, part in zip(scores, parts)}

    def _mask(self) -> None:
        pattern = self.config.rank_pattern or {}
        for path, p in self.layers.items():
            if (left := pattern.get(f"{path}.lora_E")) is not None:
                p["lora_E"].masked_fill_(~torch.tensor(left, device=p["lora_E"].device)[:, None], 0.0)


def orthogonality(layers: Iterable[Tensors]) -> Tensor:
    """Mean of ``‖A·Aᵀ − I‖`` and ``‖Bᵀ·B − I‖`` (Frobenius): times ``orth_reg_weight`` it belongs to the loss. Scalar, differentiable."""
    grams = [gram for p in layers for gram in (p["lora_A"] @ p["lora_A"].T, p["lora_B"].T @ p["lora_B"])]
    return torch.stack([(gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).norm() for gram in grams]).mean()
