"""Prompts on a model: how they come and go, and how a prompt enters the model's inputs, embeddings or cache, in every architecture.

Two functions know all inputs of a forward: `before` lengthens what is put in front of embeddings, `behind` moves what stands behind a
prompt that is in the cache. Nothing of the base is wrapped or changed.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.checkpoint.pickle_reader import read_pickled_tensors
from engine.checkpoint.report import LoadReport
from engine.hosts.basis import Basis
from engine.law import Tensors
from engine.methods.prompt import PROMPT, BasePromptEncoder, PromptLearningConfig, PromptMethod, first_words
from engine.methods.registry import method
from engine.model.lone import LoneTuner, match

Inputs = dict[str, Any]                    # arguments of a forward, by name


class Heard(NamedTuple):
    """The prompt that is heard, as each pass asks for it."""

    name: str
    config: PromptLearningConfig
    method: PromptMethod
    encoder: BasePromptEncoder
    places: list[tuple[dict[str, Any], str]]                  # where the encoder's tensors are held
    dated: bool                            # whether those are frozen, and say when they are written
    length: int                            # tokens that it stands for


Known = tuple[Heard | None, list[int] | None, Basis | None, Tensor | None]    # a prompt, of which tasks, what its rows were computed from, the rows
UNKNOWN: Known = (None, None, None, None)


class Prompts(LoneTuner):
    """The prompts of one model; at most one is heard (PEFT keeps these things in ``PeftModel`` itself).

    Attributes:
        encoders: adapter name → what is trained. tokens: adapter name → the numbers of the prompt's rows.
    """

    prefixed = False

    def __init__(self, model: nn.Module):
        self.begin(model)
        self.encoders = nn.ModuleDict()
        self.tokens: dict[str, Tensor] = {}
        self._heard: tuple[int, Heard | None] = (-1, None)     # the heard one, and for which state of the stack
        self._known: Known = UNKNOWN       # what was computed last
        self._layouts: dict[str, CacheLayout] = {}
        self._filled: tuple[Tensor | None, tuple, Any] = (None, (), None)      # the cache that was filled last: with these rows, and how

    # --- looking ---

    @property
    def heard(self) -> Heard | None:
        """The prompt that is heard; found out once for a state of the stack."""
        version, heard = self._heard
        if version != self.stack.version:
            heard = next((self._find(name) for name in self.stack.heard()), None)
            self._heard = self.stack.version, heard
        return heard

    def _find(self, name: str) -> Heard:
        config, encoder = self.peft_config[name], self.encoders[name]
        places = [(module._parameters, key) for module in encoder.modules() for key in module._parameters]
        return Heard(name, config, _method(config), encoder, places, not any(t.is_inference() or t.requires_grad for t in encoder.parameters()),
                     config.num_virtual_tokens)

    @property
    def words(self) -> nn.Module:
        """The base's input embeddings."""
        return self.model.get_input_embeddings()

    @property
    def backbone_name(self) -> str | None:
        """Name of the transformer inside the model with its head; None where the model is one itself."""
        from transformers import PreTrainedModel

        return next((name for name, child in self.model.named_children() if isinstance(child, PreTrainedModel)), None)

    # --- coming and going ---

    def place(self, name: str, config: PromptLearningConfig, file: Mapping[str, Tensor] | None = None, unknown_settings: Sequence[str] = (),
              device: torch.device | None = None) -> LoadReport:
        if not isinstance(config, PromptLearningConfig):
            raise ValueError(f"Cannot combine adapters with different peft types. This model has prompts, {config.peft_type} sits in layers.")
        fill(config, self.model)
        kind = _method(config)
        if kind.is_cache and any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules()):
            raise ValueError(f"{config.peft_type} does not work with gradient checkpointing: a checkpointed model keeps no cache. Switch it off.")
        given, report = (None, LoadReport()) if file is None else match(file, kind.shapes(config), unknown_settings)
        encoder = kind.encoder(config, self.words, given=given, **({} if file is not None else _start(config)))
        home = next(self.words.parameters()).device
        self.encoders[name] = encoder.to(device or (home if home.type != "meta" else "cpu")).train(self.model.training)
        self.tokens[name] = torch.arange(config.total_tokens)
        self.stack.changed()
        return report

    def load(self, name: str, tensors: Mapping[str, Tensor]) -> LoadReport:
        """Give a prompt the values of a file. One that a network computes becomes a table: the file has only what it computed."""
        report = self.place(name, self.peft_config[self.known(name)[0]], tensors)
        self.train_only(name, name in self.trained)
        return report

    def to_file(self, name: str) -> Tensors:
        return self.encoders[self.known(name)[0]].to_file()

    def train_only(self, name: str, on: bool) -> None:
        self.encoders[name].train_only(on)

    def forget(self, name: str) -> None:
        del self.encoders[name], self.tokens[name]
        self._layouts.pop(name, None)
        self._known, self._filled = UNKNOWN, (None, (), None)

    def set_adapter(self, adapter_name: str | Iterable[str] | Mapping[str, float], inference_mode: bool = False) -> None:
        """Choose the prompt that is heard; it trains while it is active, unless it was loaded for inference.

        Raises:
            ValueError: more than one (two prompts would stand in each other's place), a strength, or a name that is not there.
        """
        names = self.known(adapter_name)
        if len(names) != 1 or isinstance(adapter_name, Mapping) and adapter_name[names[0]] != 1:
            raise ValueError("Only one prompt can be active at a time, and only whole: choose one name.")
        super().set_adapter(names, inference_mode)

    # --- the prompt itself ---

    def rows(self, task_ids: Tensor | None = None) -> Tensor:
        """The heard prompt ``(1 or batch, rows, width)``, float32. Where nothing learns it is computed once, until one of its tensors changes."""
        heard = self.heard
        if torch.is_grad_enabled() or heard.encoder.training or not heard.dated:
            return self._computed(heard, task_ids)
        tasks = task_ids if task_ids is None else torch.as_tensor(task_ids).tolist()
        known, of_tasks, basis, rows = self._known
        if known is not heard or of_tasks != tasks or basis.moved():
            rows, basis = self._computed(heard, task_ids), Basis(heard.places, learning=False)
            self._known = heard, tasks, basis, rows
        return rows

    def _computed(self, heard: Heard, task_ids: Tensor | None) -> Tensor:
        numbers = self.tokens[heard.name].to(next(heard.encoder.parameters()).device)
        return heard.encoder((numbers[:heard.length] if heard.method.is_cache else numbers).unsqueeze(0), task_ids)

    def embeddings(self, batch: int, task_ids: Tensor | None = None) -> Tensor:
        """The heard prompt as embeddings ``(batch, rows, dim)``, float32."""
        return self.rows(task_ids).expand(batch, -1, -1)

    def cache(self, batch: int) -> Any:
        """The heard prompt as a fresh `transformers` cache for ``batch`` samples."""
        name, rows = self.heard.name, self.rows()
        wanted = (getattr(self.model, "dtype", rows.dtype), batch)
        if rows is self._filled[0] and self._filled[1] == wanted:
            return copy_of(self._filled[2])
        if name not in self._layouts:
            self._layouts[name] = CacheLayout.of(self.peft_config[name], self.model.config)
        cache = self._layouts[name].fill(rows[0].to(wanted[0]), batch)
        if rows is not self._known[3] or (kept := copy_of(cache)) is None:     # it learns, or cannot be kept
            return cache
        self._filled = (rows, wanted, kept)
        return cache

    @cached_property
    def cache_name(self) -> str:
        """What the model's forward calls its cache. Raises `ValueError` if it has none that a prompt could be put into."""
        return cache_argument(self.model, self.backbone_name)


class PromptParts:
    """What `PeftModel` shows of its prompts, by PEFT's names. Without prompts these names are the base's, if it has them."""

    prompts: Prompts | None

    @property
    def prompt_tokens(self) -> dict[str, Tensor]:
        """Adapter name → numbers of the prompt's rows."""
        return self._parts.tokens

    @property
    def word_embeddings(self) -> nn.Module:
        """The base's input embeddings."""
        return self._parts.words

    @property
    def transformer_backbone_name(self) -> str | None:
        """Name of the transformer inside the base with its head."""
        return self._parts.backbone_name

    @property
    def _parts(self) -> Prompts:
        if self.prompts is None:
            raise AttributeError("This model has no prompts.")
        return self.prompts

    def get_prompt(self, batch_size: int, task_ids: Tensor | None = None, max_cache_len: int | None = None) -> Any:
        """The active prompt: embeddings ``(batch, rows, dim)``, or a cache. ``max_cache_len``: caches grow, nothing is done with it."""
        return self._parts.cache(batch_size) if self._parts.heard.method.is_cache else self._parts.embeddings(batch_size, task_ids)

    def get_prompt_embedding_to_save(self, adapter_name: str) -> Tensor:
        """The finished prompt, as it stands in the file; on the CPU."""
        return self._parts.to_file(adapter_name)[PROMPT].detach().cpu()

    def plain(self, kwargs: Inputs) -> Inputs:
        """Arguments of a call without those that only a prompt understands, where the prompt is switched off."""
        return kwargs if self.prompts is None else {k: v for k, v in kwargs.items() if k not in ("task_ids", "input_type_mask")}

    def with_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """The base's forward behind the active prompt: the task classes know how."""
        raise NotImplementedError

    def generate_with_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """The base's ``generate`` behind the active prompt, for those task classes that have one."""
        raise ValueError("This task does not generate: use CAUSAL_LM or SEQ_2_SEQ_LM as `task_type`.")


def _method(config: PromptLearningConfig) -> PromptMethod:
    return method(config.peft_type)


# --- what a config needs of the model ---------------------------------------------------------------

def fill(config: PromptLearningConfig, model: nn.Module) -> None:
    """Take what the config leaves open from the model's config, in place.

    Raises:
        ValueError: the model has no config, or one that does not say it; or there is no ``num_virtual_tokens``.
    """
    whole = getattr(model, "config", None)
    if whole is None or not hasattr(model, "get_input_embeddings"):
        raise ValueError("Prompt learning needs a model of the transformers library: this one does not say how it is built.")
    text = getattr(whole, "text_config", None) or whole
    if config.num_virtual_tokens is None:
        raise ValueError("Please specify `num_virtual_tokens` in `peft_config`: how long the prompt is to be.")
    is_cache = _method(config).is_cache
    names = {"num_layers": ("num_hidden_layers", "num_layers", "n_layer"),
             "num_attention_heads": ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"),
             "token_dim": ("hidden_size", "n_embd", "d_model")}
    for field, known_as in names.items():
        if getattr(config, field) is None:
            found = [getattr(text, name) for name in known_as if getattr(text, name, None) is not None]
            if not found:
                raise ValueError(f"Please specify `{field}` in `peft_config`: the model's config does not say it.")
            setattr(config, field, found[0])
    if not is_cache and isinstance(words := model.get_input_embeddings(), nn.Embedding):
        config.token_dim = words.embedding_dim                 # where tokens are narrower than the layers (some OPT)
    if is_cache:
        shapes = [kv_shape(text, layer) for layer in range(config.num_layers)]
        if known := [shape for shape in shapes if shape is not None]:
            config.num_attention_heads, width = max(known, key=lambda shape: shape[1])
            config.token_dim = config.num_attention_heads * width
    if config.num_transformer_submodules is None:
        config.num_transformer_submodules = 2 if config.task_type == "SEQ_2_SEQ_LM" else 1
    if getattr(config, "encoder_hidden_size", 0) is None:
        config.encoder_hidden_size = config.token_dim


def kv_shape(config: Any, layer: int) -> tuple[int, int] | None:
    """(heads, width) of the keys that a layer caches, where the model's config says it; layers of one model may differ."""
    if getattr(config, "per_layer_config", None) is not None and getattr(config, "layer_types", None):
        config = config.per_layer_config[layer]
    heads, width = getattr(config, "num_key_value_heads", None), getattr(config, "head_dim", None)
    return None if heads is None and width is None else _kv(config, heads, width)


def _kv(config: Any, heads: int | None, width: int | None) -> tuple[int, int]:
    every = config.num_attention_heads
    return heads or every, width or config.hidden_size // every


def _start(config: PromptLearningConfig) -> dict[str, Any]:
    """What a new prompt begins with and has to be fetched: see `PromptMethod.encoder`."""
    kind = getattr(config, "prompt_tuning_init", "RANDOM")
    if kind == "TEXT" and not config.inference_mode:
        return {"text": first_words(config)}
    if kind.endswith(("SOURCE_TASKS", "SOURCE_TASK", "SOURCE_SHARED")):
        path = config.prompt_tuning_init_state_dict_path
        if path is None:
            raise ValueError(f"prompt_tuning_init_state_dict_path needs to be specified with {kind} init method")
        return {"source": load_file(path) if str(path).endswith(".safetensors") else read_pickled_tensors(Path(path))}
    return {}


# --- how a prompt enters the inputs -----------------------------------------------------------------

@dataclass(frozen=True)
class CacheLayout:
    """Where the keys and values of a prompt go in the cache of a model: the same in every pass, and so found out once.

    A row of the prompt has a key and a value for each layer in turn. For an encoder-decoder PEFT counts twice as many and leaves out
    every other pair, so that layers share: kept, for the sake of the files. Layers that borrow another one's cache get none.

    Attributes:
        text: config of the part of the model that has the cache. layers: (layer, number of its key, heads, width) of those that get some.
    """

    text: Any
    in_two: bool                           # a cache of an encoder-decoder, whose second half is filled by the model
    pairs: int
    heads: int
    width: int
    layers: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def of(cls, config: PromptLearningConfig, model_config: Any) -> "CacheLayout":
        """For a prompt in a model. Raises `ValueError` if no layer can have it, warns of some."""
        text = model_config.get_text_config(decoder=True) if hasattr(model_config, "get_text_config") else model_config
        own = getattr(text, "num_hidden_layers", config.num_layers) - (getattr(text, "num_kv_shared_layers", 0) or 0)
        heads, pairs, step = config.num_attention_heads, 2 * config.num_layers, 2 * config.num_transformer_submodules
        width = config.token_dim // heads
        shapes = [kv_shape(text, layer) or (heads, width) for layer in range(config.num_layers)]
        skipped = [layer for layer, (h, w) in enumerate(shapes) if layer >= own or h > heads or w > width]
        if len(skipped) == config.num_layers:
            raise ValueError("Prefix tuning skipped every layer because no layer's KV shape matched the prefix: set `token_dim` and "
                             "`num_attention_heads` to those of a layer that is to have it.")
        if skipped:
            warnings.warn(f"Prefix tuning skipped the layers {skipped}: they share the cache of others, or keep a wider one.", stacklevel=2)
        layers = tuple((layer, step * layer % pairs, *shape) for layer, shape in enumerate(shapes) if layer not in skipped)
        return cls(text, bool(getattr(model_config, "is_encoder_decoder", False)), pairs, heads, width, layers)

    def fill(self, rows: Tensor, batch: int) -> Any:
        """A cache that holds ``rows`` ``(n, layers · 2 · width)`` for every one of ``batch`` samples."""
        from transformers import DynamicCache, EncoderDecoderCache

        pairs = rows.view(len(rows), self.pairs, self.heads, self.width).permute(1, 2, 0, 3).unsqueeze(1).expand(-1, batch, -1, -1, -1).unbind()
        cache = DynamicCache(config=self.text)
        for layer, at, heads, width in self.layers:
            key, value = pairs[at], pairs[at + 1]
            if (heads, width) != (self.heads, self.width):
                key, value = key[:, :heads, :, :width], value[:, :heads, :, :width]
            cache.update(key, value, layer)
        return EncoderDecoderCache(cache, DynamicCache()) if self.in_two else cache


def copy_of(cache: Any) -> Any | None:
    """A cache that grows by itself from what ``cache`` holds, on the same tensors; None for kinds that are written into."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    if type(cache) is not DynamicCache or not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return None
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def cache_argument(model: nn.Module, backbone: str | None) -> str:
    """What a model's forward calls its cache. Raises `ValueError` if it has none that a prompt could be put into."""
    if name := cache_name(model) or backbone and cache_name(model.get_submodule(backbone)):
        return name
    raise ValueError("Model does not support past key values which are required for prefix tuning.")


def cache_name(module: nn.Module) -> str:
    """What a forward calls the cache that it takes and gives; empty if it knows none."""
    return _cache_of(module.forward) if "forward" in vars(module) else _cache_of_all(type(module))


def _cache_of(forward: Callable) -> str:
    knows = inspect.signature(forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in knows), "")      # the second before transformers 5.24


@cache
def _cache_of_all(kind: type[nn.Module]) -> str:
    """Of all modules of a class; asked for in every pass, and dear to find out."""
    return _cache_of(kind.forward)


def before(inputs: Inputs, prompt: Tensor, words: nn.Module, names: Sequence[str] = ("inputs_embeds", "input_ids", "attention_mask")) -> Inputs:
    """Inputs with embeddings ``prompt`` ``(batch, n, dim)`` in front; ``names`` of the embeddings, ids and mask (of a decoder, other ones)."""
    embeds, ids, mask = names
    batch, n, _ = prompt.shape
    found = dict(inputs)
    given = found.pop(ids, None)
    rest = words(given) if found.get(embeds) is None else found[embeds]
    found[embeds] = torch.cat([prompt.to(rest), rest], dim=1)
    found = _seen(found, mask, n, batch)
    if (positions := found.get("position_ids")) is not None:
        front = torch.arange(n, device=positions.device).expand(*positions.shape[:-1], -1)
        found["position_ids"] = torch.cat([front, positions + n], dim=-1)
    if (types := found.get("token_type_ids")) is not None:
        found["token_type_ids"] = torch.cat([types.new_zeros(len(types), n), types], dim=1)
    return found


def behind(inputs: Inputs, n: int, batch: int, mask: str = "attention_mask") -> Inputs:
    """Inputs for tokens that stand behind ``n`` tokens in the cache."""
    found = _seen(dict(inputs), mask, n, batch)
    if found.get("position_ids") is not None:
        found["position_ids"] = found["position_ids"] + n
    return found


def _seen(inputs: Inputs, name: str, n: int, batch: int) -> Inputs:
    """The mask says that the prompt is seen."""
    if (mask := inputs.get(name)) is not None:
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            raise ValueError(f"With a prompt, `{name}` must be a tensor (batch, length): the prompt's own part is put before it.")
        inputs[name] = torch.cat([mask.new_ones(batch, n), mask], dim=1)
    return inputs
