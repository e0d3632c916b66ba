"""Where an adapter disturbs a model least: in matrices of a small condition number κ, which hold little that is fine and easily lost.

KappaTune (arXiv 2506.16289). PEFT: ``peft.helpers.find_kappa_target_modules`` and ``KappaTuneSelector``. Here any linear layer is looked at,
GPT-2's and quantized ones too, and what is found is computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from engine.hosts.adapted import Adapted
from engine.hosts.host import host_of
from engine.hosts.linear import LinearHost
from engine.model.targets import modules

EXPERTS = (".gate_up_proj", ".down_proj", ".gate_proj", ".up_proj")        # ends of the names of fused experts' parameters
TINY = 1e-8


@torch.no_grad()
def condition_number(matrix: Tensor) -> float:
    """κ of a matrix ``(rows, columns)``: its largest singular value over its smallest."""
    singular = torch.linalg.svdvals(matrix.float())
    return float(singular[0] / (singular[-1] + TINY))


class KappaTuneSelector:
    """Condition numbers of a model's linear layers and fused experts, and the best targets by them (PEFT class of the same name).

    Args:
        model: with or without adapters; only its pristine weights are looked at. Nothing is changed.
        max_dim_size_to_analyze: matrices with a longer side are left out.
        moe_param_suffixes: ends of the names of parameters ``(experts, rows, columns)`` that are looked at; by default `EXPERTS`.
        show_progress: PEFT's; nothing is printed here.
    """

    def __init__(self, model: nn.Module, max_dim_size_to_analyze: int = 16384, moe_param_suffixes: Iterable[str] | None = None,
                 show_progress: bool = True):
        self.model, self.longest = model, max_dim_size_to_analyze
        self.suffixes = tuple(moe_param_suffixes or EXPERTS)

    @cached_property
    def modules(self) -> dict[str, float]:
        """Path of each linear layer → κ of its weight."""
        found: dict[str, float] = {}
        for path, layer in modules(self.model):
            host = layer.host if isinstance(layer, Adapted) else host_of(layer)
            if isinstance(host, LinearHost):
                W0 = layer.canonical() if isinstance(layer, Adapted) else host.canonical(host.weight(layer).detach())
                if max(W0.shape) <= self.longest:
                    found[path] = condition_number(W0)
        return found

    @cached_property
    def parameters(self) -> dict[str, float]:
        """Name of each parameter of fused experts → the mean of κ over its experts."""
        return {name: sum(map(condition_number, p.detach())) / len(p) for name, p in self.model.named_parameters()
                if p.dim() == 3 and name.endswith(self.suffixes) and max(p.shape[1:]) <= self.longest}

    def get_best_targets(self, top_p: float | None = None, num_modules: int | None = None, threshold: float | None = None) -> list[str]:
        """Linear layers, the smallest κ first: ``num_modules`` of them, or the share ``top_p`` (one at least), or those of at most
        ``threshold``; all if nothing is said."""
        return _best(self.modules, top_p, num_modules, threshold)

    def get_best_target_parameters(self, top_p: float | None = None, num_modules: int | None = None,
                                   threshold: float | None = None) -> list[str]:
        """The same of fused experts' parameters, for ``target_parameters``; arguments as of `get_best_target_modules`."""
        return _best(self.parameters, top_p, num_modules, threshold)


def _best(kappas: Mapping[str, float], top_p: float | None, count: int | None, threshold: float | None) -> list[str]:
    names = sorted(kappas, key=kappas.__getitem__)
    if count is not None:
        return names[:count]
    if top_p is not None:
        return names[:max(1, int(len(names) * top_p))]
    return [name for name in names if threshold is None or kappas[name] <= threshold]


def find_kappa_target_modules(model: nn.Module, top_p: float = 0.2, max_dim_size_to_analyze: int = 16384,
                              moe_param_suffixes: Iterable[str] | None = None, show_progress: bool = True) -> dict[str, list[str] | None]:
    """``target_modules`` and ``target_parameters`` for a config: the share ``top_p`` of linear layers, and of fused experts' parameters, with
    the smallest condition numbers (PEFT function of the same name).

    Args:
        max_dim_size_to_analyze: larger layers are left out. moe_param_suffixes: how the experts' parameters are called, if not as usual.
        show_progress: with a bar.

    Returns:
        both lists; None instead of the second where the model has no such parameters.
    """
    selector = KappaTuneSelector(model, max_dim_size_to_analyze, moe_param_suffixes, show_progress)
    return {"target_modules": selector.get_best_targets(top_p), "target_parameters": selector.get_best_target_parameters(top_p) or None}
