"""Shadows on a model: the small backbone that each adapter brings along, its run before each pass, and what it can do alone."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.utils import cached_file

from engine.checkpoint.keys import file_key
from engine.checkpoint.report import LoadReport
from engine.errors import UnsupportedLayer
from engine.hosts.shadow import PairedCache, ShadowBlock, ShadowState
from engine.law import Tensors, TensorSpec
from engine.methods.shadow import METHOD, ShadowConfig
from engine.model.companions import saved_modules
from engine.model.graph import GraphTuner
from engine.model.lone import match
from engine.model.prompt_learning import cache_name
from engine.model.shadow_alone import DetachedShadowModel, class_error, last_words
from engine.model.targets import NoMatchingPeftModuleError, named_modules

_PARTS = ("shadow_backbone", "shadow_projection", "shadow_head")
_HEADS = ("score", "classifier")


class Shadows(GraphTuner):
    """PEFT class ``ShadowModel``. One shadow is heard at a time.

    Attributes:
        shadow_backbone, shadow_projection, shadow_head: adapter name → module; a head only where sequences are classified.
        last_shadow_loss: the shadow's own error in the last pass with labels, detached.
    """

    inner = "base_layer"

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.shadow_backbone, self.shadow_projection, self.shadow_head = (nn.ModuleDict() for _ in _PARTS)
        self.last_shadow_loss: Tensor | None = None
        self._state = ShadowState(self.stack)
        self._first: Tensor | None = None  # the state that the last pass began with
        self._sharing: set[str] = set()    # names of those whose shadow reads the model's own words
        self._hooks: list[Any] = []

    # --- coming and going ---

    def place(self, name: str, config: ShadowConfig, file: Mapping[str, Tensor] | None, unknown_settings: Sequence[str],
              device: torch.device | None) -> LoadReport:
        if not isinstance(config, ShadowConfig):
            raise ValueError(f"Cannot combine adapters with different peft types. This model has shadows, not {config.peft_type}.")
        if self.peft_config and any(c.task_type == "SEQ_CLS" for c in (config, *self.peft_config.values())):
            raise ValueError("ShadowPEFT does not support multiple adapters when any adapter uses sequence classification: "
                             "the classifier and the shadow's head would be those of one adapter.")
        decoder, width = _decoder(self.model), _width(self.model.config)
        paths = self._blocks(config, decoder)
        if inside := [p.target.path for p in saved_modules(self.model, config) if any(p.target.path.startswith(f"{path}.") for path in paths)]:
            raise UnsupportedLayer(f"{inside[0]} cannot be learned whole beside a shadow.", "It is a part of a block that the shadow sits on.",
                                   "Leave it out of `modules_to_save`.")
        parts = _shadow(self.model, decoder, config, width)
        weight = next(self.model.parameters())
        kind = torch.promote_types(weight.dtype, torch.float32)
        ready: dict[str, Tensors] = {path: {} for path in paths}
        for path in paths:
            for key, spec in METHOD.tensors(config, width).items():
                ready[path][key] = nn.Parameter(_made(spec, kind, device or weight.device))
        home = weight.device if device is None or device.type == "meta" else device      # its buffers are in no file
        for module in parts.values():
            module.to(home, weight.dtype)
        report = LoadReport()
        if file is not None:
            live = _by_key(ready, parts)
            given, report = match(self._by_our_keys(file, paths), {key: t.shape for key, t in live.items()}, unknown_settings)
            with torch.no_grad():
                for key, tensor in live.items():
                    tensor.copy_(given[key])
        config.target_modules = paths if config.target_modules is None else config.target_modules      # nothing below can fail
        for path in paths:
            if not isinstance(self.model.get_submodule(path), ShadowBlock):
                self._swap(path, ShadowBlock(self.model.get_submodule(path), self._state))
            self.model.get_submodule(path).put(name, ready[path])
        for part, module in parts.items():
            getattr(self, part)[name] = module
        self._paths[name] = paths
        if _reads_base(config, parts["shadow_backbone"], width):
            self._sharing.add(name)
        if not self._hooks:
            self._hooks = [decoder.register_forward_pre_hook(self._begin, with_kwargs=True), decoder.register_forward_hook(self._end),
                           decoder.register_forward_hook(self._forget, always_call=True)]
        return report

    def _blocks(self, config: ShadowConfig, decoder: nn.Module) -> list[str]:
        blocks = _blocks_of(decoder)
        known = {path for path, module in self.model.named_modules() if any(module is block for block in blocks)}
        if config.target_modules is None:
            return [path for path, module in self.model.named_modules() if path in known]
        named = named_modules(self.model, config)
        if strange := [path for path in named if path not in known]:
            raise UnsupportedLayer(f"{METHOD.title} cannot sit on {strange[0]}.", "It sits on whole blocks of the model, not on layers within them.",
                                   "Leave `target_modules` open, or name blocks.")
        if not named:
            raise NoMatchingPeftModuleError(f"Target modules {config.target_modules} not found in the base model.", "No block has such a name.",
                                            "Leave `target_modules` open for all blocks.")
        return named

    def tensors(self, name: str) -> Tensors:
        return _by_key({path: self.model.get_submodule(path).tensors(name) for path in self._paths[name]},
                       {part: getattr(self, part)[name] for part in _PARTS if name in getattr(self, part)})

    def _our_key(self, key: str, paths: Set[str]) -> str:
        """The adapter's name stays in the file's keys, and is always "default"."""
        return re.sub(r"(shadow_(?:backbone|projection|head|down|up|update_transform|update_gate))\.[^.]+\.", r"\1.default.",
                      super()._our_key(key, paths))

    def train_only(self, name: str, on: bool) -> None:
        for tensor in self.tensors(name).values():
            tensor.requires_grad_(on and tensor.is_floating_point() and isinstance(tensor, nn.Parameter))
        if self.peft_config[name].shadow_model != "mirror":
            for words in (self.shadow_backbone[name].get_input_embeddings(), self.shadow_backbone[name].get_output_embeddings()):
                if words is not None:      # of a finished small model they would be most of what is learned
                    words.requires_grad_(False)

    def forget(self, name: str) -> None:
        super().forget(name)
        for part in _PARTS:
            if name in getattr(self, part):
                del getattr(self, part)[name]
        self._sharing.discard(name)
        if not self._paths:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    def set_adapter(self, adapter_name: str | Iterable[str] | Mapping[str, float], inference_mode: bool = False) -> None:
        """As of every tuner. Raises `ValueError` for more than one shadow."""
        if not isinstance(adapter_name, str) and len(names := list(adapter_name)) != 1:
            raise ValueError(f"ShadowPEFT requires exactly one active adapter, but got {len(names)} adapters.")
        super().set_adapter(adapter_name, inference_mode)

    # --- running ---

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward; with labels, the shadow's own error is added to the loss (equations 8–9 of the paper)."""
        output, self.last_shadow_loss = self.model(*args, **kwargs), None
        labels, first = kwargs.get("labels"), self._first
        if labels is None or getattr(output, "loss", None) is None or first is None:
            return output
        name, = self.stack.heard()
        if (head := self._head(name)) is None:
            return output
        if name in self.shadow_head:
            error = class_error(head(last_words(first, kwargs.get("attention_mask"))), labels)
        else:
            error = F.cross_entropy(head(first)[..., :-1, :].flatten(0, -2), labels[..., 1:].flatten(), ignore_index=-100)
        self.last_shadow_loss = output.shadow_loss = error.detach()
        output.loss = output.loss + self.peft_config[name].auxiliary_loss_weight * error
        return output

    def extra_error(self, where: Tensor, targets: Tensor) -> Tensor | None:
        """What the shadow's own error adds to that of the last pass: summed over tokens, in nats.

        Args:
            where: places in the flattened batch from which the ``targets`` are predicted.
        """
        name = next(iter(self.stack.heard()), "")
        if self._first is None or not name or (head := self._head(name)) is None or not (weight := self.peft_config[name].auxiliary_loss_weight):
            return None
        return weight * F.cross_entropy(head(self._first.flatten(0, 1)[where]).float(), targets, reduction="sum")

    def _head(self, name: str) -> nn.Module | None:
        if name in self.shadow_head:
            return self.shadow_head[name]
        return self.model.get_output_embeddings() if self.peft_config[name].task_type == "CAUSAL_LM" else None

    def _begin(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Before a pass: the shadow's backbone reads the input, and its state is where the blocks begin."""
        self._first = self._state.now = None
        past = kwargs.get(cache_name(decoder))
        self._pair = past if isinstance(past, PairedCache) else None
        if self._pair is not None:
            kwargs = {**kwargs, cache_name(decoder): past.base}
        if not (heard := self.stack.heard()):
            return args, kwargs
        name, = heard
        cached = kwargs.get("use_cache")
        cached = bool(getattr(decoder.config, "use_cache", False)) if cached is None else cached
        ids, embeds = kwargs.get("input_ids", args[0] if args else None), kwargs.get("inputs_embeds")
        if embeds is None and name in self._sharing:
            ids, embeds = None, self.model.get_input_embeddings()(ids)
        inputs = {"inputs_embeds": embeds} if embeds is not None else {"input_ids": ids}
        more = {key: kwargs[key] for key in ("attention_mask", "position_ids") if kwargs.get(key) is not None}
        backbone = self.shadow_backbone[name]
        if self._pair is not None:
            more[cache_name(backbone)] = self._pair.shadow
        seen = backbone(**inputs, **more, use_cache=cached, return_dict=True)
        self._shadow_past = getattr(seen, cache_name(backbone), None) if cached else None
        self._first = self.shadow_projection[name](seen.last_hidden_state)
        self._state.name, self._state.config, self._state.now = name, self.peft_config[name], self._first
        return args, kwargs

    def _end(self, decoder: nn.Module, args: tuple, output: Any) -> Any:
        past = getattr(output, cache_name(decoder), None)
        if self._first is not None and self._shadow_past is not None and past is not None:
            setattr(output, cache_name(decoder), PairedCache(past, self._shadow_past))
        return output

    def _forget(self, decoder: nn.Module, args: tuple, output: Any) -> None:
        self._state.now = self._shadow_past = None

    _shadow_past: Any = None
    _pair: PairedCache | None = None

    # --- alone ---

    def unload_shadow(self, adapter_name: str | None = None, copy: bool = False) -> DetachedShadowModel:
        """The shadow as a model of its own, without the base (PEFT method of the same name); ``copy``: it shares nothing with this one."""
        name = adapter_name or next(iter(self.stack.names), "")
        if name not in self.shadow_backbone:
            raise ValueError(f"No shadow backbone found for adapter '{name}'.")
        words = self.model.get_input_embeddings() if name in self._sharing else None
        parts = self.shadow_backbone[name], self.shadow_projection[name], self._head(name)
        return DetachedShadowModel(*(_copied(part) if copy else part for part in parts), words=_copied(words) if copy else words, owned=copy,
                                   classifies=self.peft_config[name].task_type == "SEQ_CLS")


def _copied(module: nn.Module | None) -> nn.Module | None:
    return copy.deepcopy(module)


# --- building ---

def _made(spec: TensorSpec, dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "meta":
        return torch.empty(spec.shape, dtype=dtype, device=device)
    with torch.no_grad():
        tensor = torch.empty(spec.shape)
        spec.init(tensor)
    return tensor.to(device, dtype)


def _decoder(model: nn.Module) -> nn.Module:
    """The module that runs the blocks, e.g. ``LlamaModel``. Raises `UnsupportedLayer` if there is none that is known."""
    for name in ("model", "transformer", "base_model", "decoder", ""):
        found = getattr(model, name, None) if name else model
        for candidate in (getattr(found, "decoder", None), found):
            if isinstance(candidate, nn.Module) and _blocks_of(candidate) is not None:
                return candidate
    raise UnsupportedLayer(f"{METHOD.title} cannot sit on {type(model).__name__}.", "Its blocks are not in a list that is known here.",
                           "Use it on a decoder-only language model.")


def _blocks_of(decoder: nn.Module) -> nn.ModuleList | None:
    return next((found for name in ("layers", "h") if isinstance(found := getattr(decoder, name, None), nn.ModuleList)), None)


def _width(config: Any) -> int:
    return next(getattr(config, name) for name in ("hidden_size", "n_embd", "d_model") if hasattr(config, name))


def _shadow(model: nn.Module, decoder: nn.Module, config: ShadowConfig, width: int) -> dict[str, nn.Module]:
    """The backbone, what turns its states into the model's (width), and a head where there is one of its own."""
    backbone, projection = _mirror(decoder, config) if config.shadow_model == "mirror" else _finished(config.shadow_model)
    own = _width(backbone.config)
    if projection is not None and projection.weight.shape != (width, own):
        raise ValueError(f"The loaded shadow projection maps {projection.in_features}->{projection.out_features}, but the shadow/base hidden "
                         f"sizes are {own}/{width}.")
    if projection is None:
        projection = nn.Identity() if own == width else nn.Linear(own, width, bias=False)
    if _reads_base(config, backbone, width) and isinstance(getattr(backbone, "embed_tokens", None), nn.Module):
        del backbone.embed_tokens
    head = next((getattr(model, name) for name in _HEADS if isinstance(getattr(model, name, None), nn.Module)), None)
    parts = {"shadow_backbone": backbone, "shadow_projection": projection}
    return parts | ({"shadow_head": copy.deepcopy(head)} if config.task_type == "SEQ_CLS" and head is not None else {})


def _reads_base(config: ShadowConfig, backbone: nn.Module, width: int) -> bool:
    """Whether the shadow has the model's own words for its input."""
    return (config.share_embeddings and config.shadow_model == "mirror" and _width(backbone.config) == width
            and "inputs_embeds" in inspect.signature(backbone.forward).parameters)


def _mirror(decoder: nn.Module, config: ShadowConfig) -> tuple[nn.Module, None]:
    """A new decoder of the same kind, smaller."""
    settings = copy.deepcopy(decoder.config)
    depth = config.shadow_num_hidden_layers or 1
    for names, value in ((("num_hidden_layers", "n_layer", "num_layers"), depth),
                         (("hidden_size", "n_embd", "d_model"), config.shadow_hidden_size),
                         (("intermediate_size", "ffn_dim", "n_inner"), config.shadow_intermediate_size),
                         (("num_attention_heads", "n_head", "num_heads"), config.shadow_num_attention_heads)):
        if value is not None:
            setattr(settings, next(name for name in names if hasattr(settings, name)), value)
    if kinds := list(getattr(settings, "layer_types", None) or ()):
        settings.layer_types = kinds[:depth] + kinds[-1:] * (depth - len(kinds))
    if (getattr(settings, "max_window_layers", None) or 0) > depth:
        settings.max_window_layers = depth
    return type(decoder)(settings), None


def _finished(source: str) -> tuple[nn.Module, nn.Linear | None]:
    """A small model from a folder or the Hub; one that was made as a shadow brings its projection."""
    settings = json.loads(Path(cached_file(source, "config.json")).read_text(encoding="utf-8"))
    if settings.get("model_type") != "causal_lm_with_hidden_projection":
        return AutoModel.from_pretrained(source), None
    from safetensors.torch import load_file

    inner = dict(settings["shadow_model_config"])
    backbone = AutoModel.from_config(AutoConfig.for_model(inner.pop("model_type"), **inner))
    weights = load_file(cached_file(source, "model.safetensors"))
    backbone.load_state_dict({key.removeprefix("shadow_model."): t for key, t in weights.items() if key.startswith("shadow_model.")})
    if (matrix := weights.get("shadow_hidden_projection.weight")) is None:
        raise ValueError(f"'{source}' is a projected shadow checkpoint but has no 'shadow_hidden_projection.weight'.")
    projection = nn.Linear(*reversed(matrix.shape), bias=False)
    projection.weight.data = matrix.to(projection.weight.dtype)
    return backbone, projection


# --- names in the file ---

def _by_key(blocks: Mapping[str, Tensors], parts: Mapping[str, nn.Module]) -> Tensors:
    found = {file_key("", f"{part}.default.{key}"): t for part, module in parts.items() for key, t in module.state_dict(keep_vars=True).items()}
    for path, tensors in blocks.items():
        for key, tensor in tensors.items():
            kind, _, leaf = key.partition(".")
            found[file_key(path, f"{kind}.default.{leaf}")] = tensor
    return found
