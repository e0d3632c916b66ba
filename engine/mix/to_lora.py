"""Any adapter as a LoRA, with the error that this makes: for programs that know LoRA only, and to make a large LoRA smaller.

At each layer it is the best low-rank form of what the adapter, alone and at strength 1, changes of the base's weight: of its factors where it
has them, of the dense ΔW otherwise. What depends on the base is fixed to this base thereby. A map (OFT, IA³ …) becomes ``T·W0 − W0``, which
is the map wherever nothing else is in the stack; above other adapters it would turn them too, and the LoRA adds itself to them instead.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from engine.checkpoint.keys import PREFIX, file_key
from engine.checkpoint.save import write_adapter
from engine.errors import UnsupportedLayer
from engine.hosts.adapted import Adapted, Tenant
from engine.hosts.replaced import Replaced
from engine.law import MapMethod, Site, TargetedConfig, Tensors, Whole
from engine.hosts.beside import SAVED, OwnBias, Still, WholeBias
from engine.methods.lora import METHOD, LoraConfig
from engine.methods.trainable_tokens import TokenAdapter
from engine.mix.spectrum import Spectrum, dense, thin
from engine.mix.weighted import exactly, lora_config, low_rank
from engine.model.peft_model import PeftModel


@dataclass(frozen=True)
class AtLayer:
    """What became of one layer: the Frobenius norm of ΔW, and that of what the LoRA lacks of it."""

    path: str
    rank: int
    whole: float
    lost: float

    @property
    def error(self) -> float:
        """The share that is lost, 0 to 1."""
        return self.lost / self.whole if self.whole else 0.0


@dataclass(frozen=True)
class AsLora:
    """A LoRA that stands for another adapter: its config, its tensors by their names in the file, and what was lost at each layer."""

    config: LoraConfig
    tensors: dict[str, Tensor] = field(repr=False)
    layers: list[AtLayer] = field(repr=False)

    @property
    def error(self) -> float:
        """The share of the whole change that is lost, 0 to 1: of the norms of all layers' ΔW taken together."""
        whole = math.hypot(*(layer.whole for layer in self.layers))
        return math.hypot(*(layer.lost for layer in self.layers)) / whole if whole else 0.0

    def sentence(self) -> str:
        """The error in words."""
        worst = max(self.layers, key=lambda layer: layer.error)
        ranks = sorted({layer.rank for layer in self.layers})
        size = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        return (f"A LoRA of rank {size} on {len(self.layers)} layers; it lacks {100 * self.error:.2g} % of the change, "
                f"at most {100 * worst.error:.2g} % ({worst.path}).")

    def save(self, folder: Path | str) -> None:
        """Write it as an ordinary adapter in PEFT's format."""
        write_adapter(folder, self.tensors, self.config)


@torch.no_grad()
def to_lora(model: nn.Module, adapter_name: str = "default", rank: int | None = None, error: float | None = None, *,
            progress: bool = False) -> AsLora:
    """An adapter of ``model`` as a LoRA, on request with a bar (``progress``). Nothing of the model changes.

    PEFT has `convert_to_lora`, which states no error; ours of that name stands on this.

    Args:
        model: a `PeftModel`, or any model with adapted layers in it.
        rank: of every layer, as far as a layer has so many directions. error: ‖ΔW − B·A‖ / ‖ΔW‖ that no layer may exceed, with the smallest
            rank that does it; 0 keeps all. With neither, an adapter that has a low-rank form is given exactly in it.

    What an adapter brings along (modules learned whole, words, biases) is taken over as it is; its change of a bias becomes a bias of the LoRA.

    Raises:
        ValueError: no such adapter; rank and error both, or impossible ones; neither, and the adapter has no low-rank form.
        UnsupportedLayer: a layer's change is none of its weight (modules replaced as a whole, what hears only some tokens), or none that
            LoRA's files can hold.
    """
    if rank is not None and error is not None or rank is not None and rank < 1 or error is not None and not 0 <= error < 1:
        raise ValueError(f"Say either a rank of at least 1 or an error from 0 to below 1, not rank={rank}, error={error}.")
    own, beside = _sorted(model, adapter_name)
    changes = [_Change.of(layer, layer.tenants[adapter_name], adapter_name, rank, error)
               for layer in tqdm(own, disable=not progress, desc="Converting to LoRA")]
    ranks: dict[str, int] = {}
    for change in changes:                 # attention's two parts have one name, and so one rank
        ranks[change.site.path] = max(ranks.get(change.site.path, 0), change.rank)
    config, tensors = _config(model, own[0].tenants[adapter_name].config, changes, ranks), {}
    for change in changes:
        for key, tensor in change.tensors(ranks[change.site.path], config).items():
            tensors[file_key(change.site.in_file, key)] = tensor.to(change.dtype).contiguous()
    for layer in beside:
        tenant = layer.tenants[adapter_name]
        for key, tensor in tenant.method.encode(layer.all_tensors(adapter_name), tenant.config, tenant.site).items():
            tensors[file_key(tenant.site.in_file, key)] = tensor.detach().contiguous()
    return AsLora(config, tensors, [change.told(ranks[change.site.path]) for change in changes])


def _sorted(model: nn.Module, name: str) -> tuple[list[Adapted], list[Adapted | Replaced]]:
    """(layers that the adapter's method sits on, layers that it brings along)."""
    layers = [m for m in model.modules() if isinstance(m, (Adapted, Replaced)) and name in m.tenants]
    if not layers:
        raise ValueError(f"There is no adapter named {name!r} in the model's layers that could become a LoRA.")
    beside = [m for m in layers if isinstance(m.tenants[name].method, (TokenAdapter, Still, WholeBias))
              or m.tenants[name].method.prefix == SAVED.prefix]
    own = [m for m in layers if m not in beside]
    if strange := [m for m in own if isinstance(m.tenants[name].method, Whole)] or beside * (not own):
        path = strange[0].tenants[name].site.path
        raise UnsupportedLayer(f"{strange[0].tenants[name].method.title} cannot become a LoRA.",
                               f"On {path} it has tensors of its own in place of the layer's, and no change of a weight.",
                               "Keep the adapter as it is, or bake it into the model.")
    return own, beside


# --- one layer ---

@dataclass(frozen=True)
class _Change:
    """What the adapter changes at one site: ΔW, by a convolution's groups or a parameter's experts, and of the bias."""

    site: Site
    blocks: list[Spectrum]
    rank: int                              # of the LoRA: of one expert, of all groups together
    bias: Tensor | None
    b0: Tensor | None
    dtype: torch.dtype

    @classmethod
    def of(cls, layer: Adapted, tenant: Tenant, name: str, rank: int | None, error: float | None) -> "_Change":
        method, site = tenant.method, tenant.site
        factors, many = low_rank(layer, name), max(site.groups, site.experts)
        if factors is None and rank is None and error is None:
            raise ValueError(f"{method.title} has no low-rank form at {site.path}: say which rank or which error the LoRA may have.")
        share = None if rank is None else max(1, rank // site.groups)
        if factors is not None:
            blocks = [thin(factors.A, factors.scale * rows) for rows in factors.B.chunk(many)]
            if rank is None and error is None:                # its own rank; where A sees all groups, that of all groups together
                share = factors.A.shape[0] // (site.groups if factors.A.shape[1] > site.columns else 1)
        else:
            blocks = [dense(rows, share, error) for rows in _delta(layer, tenant, name).chunk(many)]
        if share is None:
            share = _smallest(sum(block.lost for block in blocks), error)
        dtype = next((t.dtype for t in layer.all_tensors(name).values() if t.is_floating_point()), layer.pristine_weight.dtype)
        bias, b0 = _bias(layer, tenant, name)
        most = min(blocks[0].US.shape[0], blocks[0].Vh.shape[1])
        return cls(site, blocks, min(share, most) * site.groups, bias, b0, dtype)

    def tensors(self, rank: int, config: LoraConfig) -> Tensors:
        """The LoRA's tensors at this site by their names in the file."""
        pairs = [block.cut(rank // self.site.groups) for block in self.blocks]
        A, B = (torch.stack(matrices) for matrices in zip(*pairs))
        bias = self.bias
        if config.lora_bias and bias is None:
            bias = A.new_zeros(self.site.out)
        found = METHOD.from_blocks(A, B, bias if config.lora_bias else None, self.site)
        if config.bias != "none" and self.site.has_bias:
            found[OwnBias.bias_file] = self.b0 if bias is None else self.b0 + bias
        return found

    def told(self, rank: int) -> AtLayer:
        lost = [block.lost for block in self.blocks]
        kept = rank // self.site.groups
        return AtLayer(self.site.path, rank, math.sqrt(sum(float(each[0]) for each in lost)),
                       math.sqrt(sum(float(each[min(kept, len(each) - 1)]) for each in lost)))


def _smallest(lost: Tensor, error: float) -> int:
    """The smallest rank, at least 1, at which no more than this share is lost."""
    return max(1, int((lost > error**2 * lost[0]).sum()))


def _delta(layer: Adapted, tenant: Tenant, name: str) -> Tensor:
    W0 = layer.canonical()
    try:
        return tenant.method.delta(exactly(layer, name), tenant.config, tenant.site, W0.to(torch.promote_types(W0.dtype, torch.float32)))
    except NotImplementedError as problem:
        raise UnsupportedLayer(f"{tenant.method.title} cannot become a LoRA.", str(problem), "Keep the adapter as it is.") from problem


def _bias(layer: Adapted, tenant: Tenant, name: str) -> tuple[Tensor | None, Tensor | None]:
    """(change of the bias or None, the bias as it was)."""
    method, config, site, p = tenant.method, tenant.config, tenant.site, exactly(layer, name)
    W0, b0 = layer.canonical(), layer.pristine_bias
    exact = torch.promote_types(W0.dtype, torch.float32)
    b0 = None if b0 is None else b0.detach().to(exact)
    change = method.bias_delta(p, config, site, b0, W0.to(exact) if method.needs_base else None)
    if isinstance(method, MapMethod) and b0 is not None and method.acts_out(config, site) and method.turns_bias(config, site):
        turned = method.turn_out(p, config, site, b0) - b0
        change = turned if change is None else change + turned
    if change is not None and b0 is None:
        raise UnsupportedLayer(f"{method.title} cannot become a LoRA.", f"It gives {site.path} a bias, and LoRA can only change one that is there.",
                               "Keep the adapter as it is, or bake it into the model.")
    return change, b0


# --- the config ---

def _config(model: nn.Module, source: TargetedConfig, changes: list[_Change], ranks: dict[str, int]) -> LoraConfig:
    parameters = [c.site.path for c in changes if c.site.kind == "parameter"]
    bias = {}
    if getattr(source, "bias", None) == "all":
        bias = {"bias": "all"}
    elif any(c.bias is not None for c in changes):            # LoRA's own bias asks for one on every layer; another one in its place does not
        bias = {"lora_bias": True} if all(c.site.has_bias for c in changes) else {"bias": "lora_only"}
    same = {name: getattr(source, name) for name in ("task_type", "base_model_name_or_path", "revision", "modules_to_save",
                                                     "trainable_token_indices", "layer_replication") if getattr(source, name, None) is not None}
    config = lora_config(_base(model), ranks)
    if parameters:
        config = replace(config, target_parameters=parameters, target_modules=[name for name in config.target_modules if name not in parameters])
    return replace(config, **bias, **same)


def _base(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


# --- by PEFT's names ---

def convert_to_lora(model: nn.Module, rank: int | float, adapter_name: str = "default", progressbar: bool = False,
                    compile_kwargs: dict[str, Any] | None = None) -> tuple[LoraConfig, dict[str, Tensor]]:
    """(config, tensors by their names in the file) of an adapter as a LoRA (PEFT function of the same name); see `to_lora`.

    Args:
        rank: an int is every layer's rank; a float, above 0 and up to 1, the share of ΔW's sum of squares that each layer keeps.
        compile_kwargs: chooses in PEFT how the same is computed; here there is nothing that compiling would speed up.

    The names begin with ``base_model.model.`` if ``model`` is a `PeftModel`. Raises `TypeError` where `to_lora` cannot, or finds no adapter;
    `ValueError` for an impossible rank.
    """
    if isinstance(rank, float) and not 0 < rank <= 1:
        raise ValueError(f"If rank is a float, it is interpreted as a threshold. It must be between 0 and 1 but got {rank}.")
    if rank < 1 and isinstance(rank, int):
        raise ValueError(f"Passing a rank of {rank} doesn't make sense, please pass a valid value.")
    layers = [m for m in model.modules() if isinstance(m, Adapted) and adapter_name in m.tenants]
    if not layers:
        raise TypeError("Could not detect any layer that supports LoRA conversion.")
    if isinstance(layers[0].tenants[adapter_name].config, LoraConfig):
        warnings.warn("Converting a PEFT adapter to LoRA that is already a LoRA adapter. There is typically no need for that.", stacklevel=2)
    for site in (m.tenants[adapter_name].site for m in layers) if isinstance(rank, int) else ():
        if rank > (most := min(site.out // site.experts, site.columns * site.groups)):
            raise ValueError(f"The chosen rank {rank} is larger than the weight shape ({most}), please choose a lower rank.")
    try:
        made = to_lora(model, adapter_name, **({"rank": rank} if isinstance(rank, int) else {"error": math.sqrt(1 - rank)}), progress=progressbar)
    except UnsupportedLayer as problem:
        raise TypeError(f"Some module types on this model do not support LoRA conversion: {problem}") from problem
    config = made.config
    if isinstance(rank, float):            # as there, the ranks stand in the pattern alone
        ranks = {layer.path: layer.rank for layer in made.layers}
        config = replace(config, r=1, lora_alpha=1, rank_pattern=ranks, alpha_pattern=dict(ranks))
    return config, made.tensors if isinstance(model, PeftModel) else {key.removeprefix(PREFIX): t for key, t in made.tensors.items()}


def save_as_lora(path: Path | str, model: nn.Module, rank: int | float, adapter_name: str = "default", progressbar: bool = False,
                 compile_kwargs: dict[str, Any] | None = None) -> None:
    """Write an adapter as a LoRA into the folder ``path`` (PEFT function of the same name); see `convert_to_lora`."""
    config, tensors = convert_to_lora(model, rank, adapter_name, progressbar, compile_kwargs)
    write_adapter(path, tensors, config)
