"""From several adapters in a model to the config and tensors of one: what `PeftModel.add_weighted_adapter` adds."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from engine.hosts.adapted import Adapted
from engine.hosts.replaced import Replaced
from engine.law import Factors, PeftConfig, Tensors, Whole
from engine.hosts.beside import BIAS, WholeBias
from engine.methods.alora import Activated
from engine.methods.lora import METHOD, LoraConfig
from engine.methods.trainable_tokens import ROWS, TOKEN_ADAPTER, TokenAdapter, TrainableTokensConfig
from engine.mix.combine import SEPARATE, Recipe, arithmetic, combine
from engine.model.targets import modules, shortest_names

SCALES = "ia3_l"


@torch.no_grad()
def weighted_adapter(model: nn.Module, layers: Mapping[str, Adapted], adapters: Sequence[str], weights: Sequence[float], kind: str,
                     rank: int | None, clamp: float | None, density: float | None, signs: str) -> tuple[PeftConfig, dict[str, Tensors]]:
    """(config, module path → tensors) of a LoRA, or an IA³ of several, that is the combination. See `PeftModel.add_weighted_adapter`.

    Raises `ValueError`.
    """
    if not adapters or len(adapters) != len(weights):
        raise ValueError(f"There must be as many weights as adapters: {len(adapters)} adapters, {len(weights)} weights.")
    if unknown := [a for a in adapters if not any(a in layer.tenants for layer in layers.values())]:
        raise ValueError(f"Adapter {unknown[0]} does not exist.")
    if all(layer.tenants[a].config.peft_type == "IA3" for layer in layers.values() for a in adapters if a in layer.tenants):
        return _scalings(model, layers, [*zip(adapters, weights)])
    there = {path: [layer.tenants[a].method for a in adapters if a in layer.tenants] for path, layer in layers.items()}
    words, copies = ([path for path, laws in there.items() if laws and all(map(is_one, laws))] for is_one in (
        lambda law: isinstance(law, TokenAdapter), lambda law: isinstance(law, Whole) and not isinstance(law, WholeBias)))
    configs = {a: [layer.tenants[a].config for layer in layers.values() if a in layer.tenants] for a in adapters}
    calls = {next((tuple(call) for config in found if (call := getattr(config, "alora_invocation_tokens", None))), ()) for found in configs.values()}
    if len(calls) > 1:
        raise ValueError("Adapters that are called by other words, or one that is called and one that is not, cannot be combined into one LoRA.")
    parts = {path: _factors(layers[path], path, adapters) for path, laws in there.items() if laws and path not in {*words, *copies}}
    ranks = {f.A.shape[0] for found in parts.values() for f in found.values()}
    if kind in SEPARATE and any(len({f.A.shape[0] for f in found.values()}) > 1 for found in parts.values()):
        raise ValueError(f"All adapters must have the same r value when using combination_type {kind}.")
    recipe = Recipe(kind, rank or max(ranks), clamp, density, signs)
    combined = dict(zip(parts, combine([[(w, found[a]) for a, w in zip(adapters, weights) if a in found] for found in parts.values()], recipe)))
    named = {layers[path].tenants[next(iter(parts[path]))].site.path: f for path, f in combined.items()}   # attention's parts by one name
    config = lora_config(model, {path: f.A.shape[0] for path, f in named.items()})
    config.inference_mode, config.lora_bias = True, any(f.bias is not None for f in named.values())
    rows = {path: found for path in words if (found := _words(layers[path], [*zip(adapters, weights)], recipe))}
    config.trainable_token_indices = {path: indices for path, (indices, _) in rows.items()} or None
    config.modules_to_save = copies or None
    config.alora_invocation_tokens = list(*calls) or None
    config.ensure_weight_tying = any(getattr(each, "ensure_weight_tying", False) for found in configs.values() for each in found)
    return config, {path: METHOD.from_factors(f, layers[path].site) for path, f in combined.items()} | {
        path: {ROWS: found} for path, (_, found) in rows.items()} | {path: _copy(layers[path], [*zip(adapters, weights)], recipe) for path in copies}


def _words(layer: Adapted, weighted: Sequence[tuple[str, float]], recipe: Recipe) -> tuple[list[int], Tensor] | None:
    """(numbers of the words that any of these adapters has learned, their vectors when combined); None if those are another layer's."""
    heard = [(layer.tenants[a].config, weight, exactly(layer, a)[ROWS]) for a, weight in weighted if ROWS in layer.tensors(a)]
    if not heard:
        return None
    W0, site = layer.canonical(), layer.site
    places = [TOKEN_ADAPTER.places(config, site, W0) for config, _, _ in heard]
    indices = torch.cat(places).unique()
    base = TOKEN_ADAPTER.rows(TrainableTokensConfig(token_indices=indices.tolist()), site, W0).to(heard[0][2].dtype)
    changes = [base.index_copy(0, torch.searchsorted(indices, own), rows) - base for own, (_, _, rows) in zip(places, heard)]
    return indices.tolist(), base + arithmetic(changes, [weight for _, weight, _ in heard], recipe)


def _copy(layer: Replaced, weighted: Sequence[tuple[str, float]], recipe: Recipe) -> Tensors:
    """The tensors of a module that some of these adapters have learned whole, their changes combined; what is no number is the last one's."""
    heard, found = [(exactly(layer, a), weight) for a, weight in weighted if a in layer.tenants], {}
    for key in layer.tensors(next(a for a, _ in weighted if a in layer.tenants)):
        base, own = layer.pristine()[key.partition(".")[2]], [p[key] for p, _ in heard]
        base = base.detach().to(own[-1].dtype)
        found[key] = base + arithmetic([p - base for p in own], [w for _, w in heard], recipe) if base.is_floating_point() else own[-1]
    return found


def _scalings(model: nn.Module, layers: Mapping[str, Adapted], weighted: Sequence[tuple[str, float]]) -> tuple[PeftConfig, dict[str, Tensors]]:
    """One IA³ that does what they do together, ``1 + Σ weight · (l − 1)``. (PEFT's Σ weight · l is the same where the weights add up to 1.)"""
    found: dict[str, Tensors] = {}
    for path, layer in layers.items():
        if here := [(weight, exactly(layer, a)[SCALES]) for a, weight in weighted if a in layer.tenants]:
            found[path] = {SCALES: 1 + sum(weight * (scales - 1) for weight, scales in here)}
    config = copy.copy(next(layer.tenants[a].config for layer in layers.values() for a, _ in weighted if a in layer.tenants))
    config.inference_mode, config.target_modules = True, shortest_names(found, (path for path, _ in modules(model) if path not in found))
    return config, found


def _factors(layer: Adapted, path: str, adapters: Sequence[str]) -> dict[str, Factors]:
    """The low-rank form of each of the adapters that sits on this layer."""
    found: dict[str, Factors] = {}
    for name in dict.fromkeys(adapters):
        if name in layer.tenants:
            tenant = layer.tenants[name]
            if tenant.site.kind == "parameter":
                raise ValueError(f"add_weighted_adapter does not support targeting nn.Parameter (problematic adapter '{name}')")
            if tenant.site.groups > 1:
                raise ValueError(f"Adapters on {path}, a convolution with groups, cannot be combined: LoRA's files keep one group's outputs apart.")
            if BIAS in layer.all_tensors(name):
                raise ValueError(f"The adapter {name} has a bias of its own at {path}, which a combined LoRA has not.")
            law = tenant.method.inner if isinstance(tenant.method, Activated) else tenant.method           # an aLoRA's, once it is called
            if (factors := law.factors(exactly(layer, name), tenant.config, tenant.site)) is None:
                raise ValueError(f"{tenant.method.title} has no low-rank form at {path}, so the adapter {name} cannot be combined into one LoRA.")
            found[name] = factors
    return found


def exactly(layer: Adapted, name: str) -> Tensors:
    """An adapter's tensors at a layer, detached, in float32 or better."""
    return {k: t.detach().to(torch.promote_types(t.dtype, torch.float32)) if t.is_floating_point() else t
            for k, t in layer.all_tensors(name).items()}


def low_rank(layer: Adapted, name: str) -> Factors | None:
    """The low-rank form, in float32 or better, of an adapter at a layer, where it has one."""
    tenant = layer.tenants[name]
    return tenant.method.factors(exactly(layer, name), tenant.config, tenant.site)


def lora_config(model: nn.Module, ranks: Mapping[str, int]) -> LoraConfig:
    """The config of a LoRA of scale 1 that sits on these modules of ``model``, with these ranks, and on no others."""
    rank = max(ranks.values())
    others = {path: r for path, r in ranks.items() if r != rank}
    return LoraConfig(r=rank, lora_alpha=rank, rank_pattern=others, alpha_pattern=dict(others),
                      target_modules=shortest_names(ranks, (path for path, _ in modules(model) if path not in ranks)))
