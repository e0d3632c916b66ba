"""AdaMSS's schedule, by which clusters stop learning (Zheng et al. 2025, NeurIPS, "AdaMSS: Adaptive Multi-Subspaces")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class SubspaceSchedule:
    """Adaptive subspace allocation: in the course of training the least important clusters of all layers together stop learning.

    Between ``init_warmup`` and ``final_warmup`` the number that goes on falls from all to ``asa_target_subspaces``; what has stopped keeps
    its value and never learns again.

    Args:
        config: the adapter's.
        layers: module path → the live tensors of one layer, by their names in the method's table.
    """

    def __init__(self, config: Any, layers: Mapping[str, Tensors]):
        self.config, self.layers = config, dict(layers)
        self.learning = {path: torch.ones(len(p["adamss_ranks"]), dtype=torch.bool, device=p["adamss_A"].device) for path, p in self.layers.items()}
        self._stopped: dict[str, Tensors] = {}                # values of what has stopped, beside what has not
        self._importance: dict[tuple[str, str], Tensor] = {}  # running means of |p · ∂loss/∂p|, by path and tensor,
        self._doubt: dict[tuple[str, str], Tensor] = {}       # and of how far it strays from them
        for path, p in self.layers.items():
            for name in ("adamss_A", "adamss_B"):
                p[name].register_hook(lambda grad, path=path, name=name: grad * self._goes_on(path, name))

    def state(self) -> dict[str, Tensor]:
        """All that a run needs to go on, by name."""
        found = {f"{kind}:{path}:{name}": t for kind, means in (("_importance", self._importance), ("_doubt", self._doubt))
                 for (path, name), t in means.items()}
        found |= {f"_stopped:{path}:{name}": t for path, kept in self._stopped.items() for name, t in kept.items()}
        return found | {f"learning:{path}": t for path, t in self.learning.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for key, tensor in state.items():
            kind, path, *name = key.split(":")
            tensor = tensor.to(self.layers[path]["adamss_A"].device)
            if kind == "learning":
                self.learning[path] = tensor
            elif kind == "_stopped":
                self._stopped.setdefault(path, {})[name[0]] = tensor
            else:
                getattr(self, kind)[path, name[0]] = tensor

    def _goes_on(self, path: str, name: str) -> Tensor:
        """Which entries of a tensor learn, to be broadcast."""
        learning = self.learning[path]
        return learning[:, None, None] if name == "adamss_A" else learning[self.layers[path]["adamss_owner"]][:, None]

    def budget(self, step: int) -> int:
        """How many clusters go on learning after this step."""
        cfg, total = self.config, sum(len(learning) for learning in self.learning.values())
        remaining = min(1.0, max(0.0, 1 - (step - cfg.init_warmup) / (cfg.final_warmup - cfg.init_warmup)))
        return int(cfg.asa_target_subspaces + (total - cfg.asa_target_subspaces) * remaining ** cfg.asa_schedule_exponent)

    @torch.no_grad()
    def update_and_allocate(self, global_step: int) -> None:
        """To be called in every step after the optimizer's and before the gradients are cleared (PEFT: ``AdamssModel.update_and_allocate``)."""
        cfg = self.config
        for path, kept in self._stopped.items():              # whatever the optimizer's momentum or decay made of it
            for name, value in kept.items():
                self.layers[path][name].copy_(torch.where(self._goes_on(path, name), self.layers[path][name], value))
        if not cfg.use_asa or not cfg.init_warmup <= global_step <= cfg.final_warmup:
            return
        self._observe()
        if global_step % cfg.mask_interval == 0:
            self._choose(self.budget(global_step))
            self._importance.clear(), self._doubt.clear()

    def _observe(self) -> None:
        beta1, beta2 = self.config.asa_importance_beta, self.config.asa_uncertainty_beta
        for path, p in self.layers.items():
            for name in ("adamss_A", "adamss_B"):
                if p[name].grad is None:
                    continue
                key, now = (path, name), (p[name] * p[name].grad).abs()
                mean = self._importance.get(key, torch.zeros_like(now))
                self._doubt[key] = beta2 * self._doubt.get(key, torch.zeros_like(now)) + (1 - beta2) * (now - mean).abs()
                self._importance[key] = beta1 * mean + (1 - beta1) * now

    def _scores(self, path: str) -> Tensor:
        """Of each cluster at one layer: the mean over its A and that over its B."""
        p, key_a, key_b = self.layers[path], (path, "adamss_A"), (path, "adamss_B")
        owner, ranks = p["adamss_owner"], p["adamss_ranks"]
        of_a = (self._importance[key_a] * self._doubt[key_a]).sum((1, 2)) / (ranks * p["adamss_A"].shape[2])
        of_rows = (self._importance[key_b] * self._doubt[key_b]).sum(1)
        of_b = torch.zeros_like(of_a).index_add(0, owner, of_rows) / (ranks * torch.bincount(owner, minlength=len(ranks)))
        return (of_a + of_b).masked_fill(~self.learning[path], -1.0)

    def _choose(self, budget: int) -> None:
        """Exactly ``budget`` clusters go on. (PEFT keeps those above the score of the last one, so one less.)"""
        seen = [path for path in self.layers if (path, "adamss_A") in self._importance and (path, "adamss_B") in self._importance]
        if not seen:
            return
        scores = torch.cat([self._scores(path).float().cpu() for path in seen])
        kept = torch.zeros(len(scores), dtype=torch.bool)
        kept[scores.topk(min(budget, len(scores))).indices] = True
        for path, part in zip(seen, kept.split([len(self.learning[path]) for path in seen]), strict=True):
            self.learning[path] &= part.to(self.learning[path].device)
            self._stopped[path] = {name: self.layers[path][name].clone() for name in ("adamss_A", "adamss_B")}
