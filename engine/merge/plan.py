"""What a streaming merge will write, decided before a byte is: which tensor of which file, in which place, with which layer on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from engine.bases.load import check_folder
from engine.errors import BadModel, UnsupportedLayer
from engine.hosts.adapted import Adapted
from engine.hosts.replaced import Replaced
from engine.law import MapMethod, Method
from engine.hosts.beside import BIAS, Still
from engine.merge.shards import SAFE, TORCH, plan_entries
from engine.mix.stack import StackOnBase
from engine.specs.jobs import StackEntry
from engine.store.headers import Header, TensorEntry
from engine.store.library import ModelInfo

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Item:
    """One tensor to write. ``layer`` is None where it is only copied; ``leaf`` is its name within the layer."""

    name: str                              # in the new file
    source: str                            # in the base's file
    entry: TensorEntry                     # in the base's file
    layer: Adapted | Replaced | None = None
    leaf: str = "weight"


@dataclass(frozen=True)
class Shard:
    """One file: read from ``header.path``, written under the same name."""

    header: Header
    items: list[Item]
    entries: dict[str, TensorEntry]        # of the new file


@dataclass
class MergePlan:
    """``bytes`` of all new weight files together. ``missed`` names layers whose weights are not in the files under a name
    that the model knows: then the merge cannot be streamed."""

    base: ModelInfo
    stack: StackOnBase
    shards: list[Shard]
    config: dict[str, Any]                 # config.json of the result
    bytes: int
    missed: list[str] = field(default_factory=list)

    @property
    def touched(self) -> set[str]:
        """Names of the new file's tensors that an adapter changes."""
        return {item.name for shard in self.shards for item in shard.items if item.layer is not None}


def skeleton(base: ModelInfo) -> nn.Module:
    """The base's architecture on the meta device: all names and shapes, no memory. Raises `BadModel`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    check_folder(base.path)
    if base.config.get("quantization_config"):
        raise BadModel(f"Nothing can be baked into {base.name}.", "Its weights are shrunken; most of what an adapter changes would be lost.",
                       "Choose the original model and shrink the result afterwards.", path=str(base.path))
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.path, local_files_only=True)).eval()
    except MemoryError:
        raise
    except Exception as problem:           # transformers raises anything for a description that makes no sense
        raise BadModel(f"The model {base.name} could not be read.", "Its description does not fit a language model that is known here.",
                       "Get the model again, or choose another one.", details=repr(problem), path=str(base.path)) from problem


def plan_merge(base: ModelInfo, entries: Sequence[StackEntry], dtype: str = "same") -> MergePlan:
    """Put the stack on the skeleton and find the file tensor of every layer that it changes.

    Args:
        dtype: ``"same"``, or the number format of all floating-point tensors of the result.

    Raises: `BadModel`, and what `StackOnBase.arrange` raises.
    """
    import torch

    model = skeleton(base)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)} | {name for name, _ in model.named_buffers()}
    groups: dict[int, list[str]] = {}      # parameters that are one and the same (tied embeddings)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    tied = {name: group for group in groups.values() if len(group) > 1 for name in group}

    stack = StackOnBase(model, base)
    stack.arrange(entries)
    changed = _changed_parameters(stack)
    untied = any(name in tied for name in changed)
    target = None if dtype == "same" else SAFE[getattr(torch, dtype)]

    shards, found, written = [], set(), set()
    for header in weight_files(base):
        items = []
        for source, entry in sorted(header.tensors.items(), key=lambda pair: pair[1].start):
            name = _model_name(source, names, model.base_model_prefix)
            group = tied.get(name, [name]) if untied and name else [name]
            for member in group:           # what was tied and no longer is gets a tensor of its own
                written_as = member if untied and member else source
                layer, leaf = changed.get(member, (None, "weight"))
                if written_as not in written:
                    items.append(Item(written_as, source, entry, layer, leaf))
                    written.add(written_as)
                if layer is not None:
                    found.add(member)
                    if entry.dtype not in TORCH:
                        raise BadModel(f"Nothing can be baked into {base.name}.", f"Its weights are in the shrunken format {entry.dtype}.",
                                       "Choose the original model and shrink the result afterwards.")
        shards.append(Shard(header, items, plan_entries(
            (item.name, target if target and item.entry.dtype in TORCH else item.entry.dtype, item.entry.shape) for item in items)))
    return MergePlan(base, stack, shards, _new_config(base.config, dtype, untied),
                     sum(max((e.end for e in shard.entries.values()), default=0) for shard in shards),
                     sorted((set(changed) - found) | _beyond_streaming(changed, stack)))


def weight_files(base: ModelInfo) -> list[Header]:
    """The files that make up the model: those of the index, else ``model.safetensors``; not what lies beside them."""
    single = [header for header in base.headers if header.path.name == SINGLE]
    return list(base.headers) if (base.path / INDEX).exists() or not single else single


def _changed_parameters(stack: StackOnBase) -> dict[str, tuple[Adapted | Replaced, str]]:
    """Parameter name in the base → (layer, leaf), for all that an adapter of the stack changes."""
    changed: dict[str, tuple[Adapted | Replaced, str]] = {}
    for path, layer in stack.model.adapted.items() if stack.placed else ():
        heard = [name for name, strength in stack.model.stack.entries if name in layer.tenants and strength != 0]
        if isinstance(layer, Replaced):
            changed |= {f"{path}.{leaf.name}": (layer, leaf.name) for name in heard for leaf in layer.tenants[name].site.leaves}
            continue
        weight, bias = layer.host.names(path)
        if any(not isinstance(layer.tenants[n].method, Still) for n in heard):
            changed[weight] = (layer, "weight")
        if any(_changes_bias(layer, n) for n in heard):
            if not layer.site.has_bias:
                raise UnsupportedLayer("This stack cannot be baked into a model's files.", f"An adapter gives the layer {path} a bias, "
                                       "and the model's description says that it has none.", "Leave that adapter out, or run it live.")
            changed[bias] = (layer, "bias")
        if any(_drops_groups(layer, n) for n in heard):
            raise UnsupportedLayer("This stack cannot be baked into a model's files.", f"An adapter mixes the groups of the convolution {path}, "
                                   "and the model's description says that it has groups.", "Leave that adapter out, or run it live.")
    return changed


def _drops_groups(layer: Adapted, name: str) -> bool:
    """Whether the adapter's ΔW is wider than a grouped kernel (see `engine.hosts.conv`)."""
    if layer.site.groups == 1:
        return False
    tenant = layer.tenants[name]
    factors = tenant.method.factors(layer.all_tensors(name), tenant.config, tenant.site)
    return factors is not None and factors.A.shape[1] != layer.site.columns


def _changes_bias(layer: Adapted, name: str) -> bool:
    tenant = layer.tenants[name]
    if BIAS in layer.all_tensors(name):
        return True
    if isinstance(tenant.method, MapMethod):
        return tenant.method.acts_out(tenant.config, tenant.site) and tenant.method.turns_bias(tenant.config, tenant.site)
    if tenant.method.needs_base:           # whether, and how, only the weight itself can tell
        return layer.site.has_bias and type(tenant.method).bias_delta is not Method.bias_delta
    return tenant.method.bias_delta(layer.all_tensors(name), tenant.config, tenant.site) is not None


def _beyond_streaming(changed: dict[str, tuple[Adapted | Replaced, str]], stack: StackOnBase) -> set[str]:
    """Tensors that cannot be composed from their own piece of the file alone."""
    heard = {name for name, strength in stack.model.stack.entries if strength != 0} if stack.placed else set()
    return {key for key, (layer, leaf) in changed.items() for name, tenant in layer.tenants.items()
            if name in heard and (tenant.adrift or (leaf == "bias" and tenant.method.needs_base)
                                  or (tenant.method.sees_bias and layer.site.has_bias))}


def _model_name(source: str, names: set[str], prefix: str) -> str | None:
    """The parameter that a name in the file means, if that is plain (files may lack the model's prefix, or have it once more)."""
    return next((name for name in (source, f"{prefix}.{source}", source.removeprefix(f"{prefix}.")) if name in names), None)


def _new_config(config: dict, dtype: str, untied: bool) -> dict:
    config = dict(config)
    if dtype != "same":
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    if untied:
        config["tie_word_embeddings"] = False
        if isinstance(config.get("text_config"), dict):
            config["text_config"] = {**config["text_config"], "tie_word_embeddings": False}
    return config

