"""Keys and values of a text the base has read, as the beginning of a cartridge or a prefix; and cartridges put one after another.

PEFT: the functions of the same names in ``peft.tuners.cartridge.utils``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.checkpoint.load import WEIGHTS, read_tensors
from engine.law import PeftConfig
from engine.methods.cartridge import CartridgeConfig
from engine.methods.prompt import PROMPT
from engine.model.prompt_learning import cache_argument
from engine.store.atomic import replacing

if TYPE_CHECKING:
    from engine.model.peft_model import PeftModel


def prompt_embeddings_from_past_key_values(past_key_values: Any, *, num_virtual_tokens: int) -> Tensor:
    """The first ``num_virtual_tokens`` tokens of a cache as rows ``(n, layers · 2 · width)``, a key and a value of every layer in turn.

    PEFT function of the same name, as the other three here.

    Args:
        past_key_values: a cache of `transformers`, or (key, value) pairs ``(1, heads, length, d)`` for each layer.

    Raises:
        ValueError: an empty cache, one of several samples, or one that is too short.
    """
    layers = [(pair[0], pair[1]) for pair in past_key_values]
    if not layers:
        raise ValueError("Empty `past_key_values`.")
    for tensor in (t for pair in layers for t in pair):
        if tensor.dim() != 4 or tensor.shape[0] != 1 or tensor.shape[2] < num_virtual_tokens or tensor.shape != layers[0][0].shape:
            raise ValueError(f"A prompt of {num_virtual_tokens} tokens needs the cache of one text that is at least as long, alike in all layers "
                             f"(1, heads, length, width); there is {tuple(tensor.shape)}.")
    rows = torch.stack([t[0, :, :num_virtual_tokens] for pair in layers for t in pair])      # (layers · 2, heads, n, d)
    return rows.permute(2, 0, 1, 3).flatten(1)


@torch.no_grad()
def initialize_kv_prefix_from_past_key_values(model: "PeftModel", *, adapter_name: str | None = None, past_key_values: Any,
                                              num_virtual_tokens: int | None = None) -> Tensor:
    """Let a prompt of keys and values begin with a cache (PEFT function); returns its rows ``(n, layers · 2 · width)``, float32.

    Arguments as of `prompt_embeddings_from_past_key_values`; ``num_virtual_tokens`` are those of the prompt unless given.

    Raises:
        ValueError: the adapter is no such prompt, or a network computes it.
    """
    name = adapter_name if adapter_name is not None else model.active_adapter
    config = model.peft_config[name]
    if model.prompts is None or not hasattr(model.prompt_encoder[name], "load_prompt_embeddings"):
        raise ValueError(f"Adapter '{name}' must be a CARTRIDGE or PREFIX_TUNING adapter (got {config.peft_type}).")
    rows = prompt_embeddings_from_past_key_values(past_key_values, num_virtual_tokens=num_virtual_tokens or config.num_virtual_tokens)
    model.prompt_encoder[name].load_prompt_embeddings(rows)
    return rows


@torch.no_grad()
def initialize_kv_prefix_from_text(model: "PeftModel", tokenizer: Any, *, text: str, adapter_name: str | None = None,
                                   num_virtual_tokens: int | None = None, use_chat_template: bool = True,
                                   max_length: int | None = None) -> Tensor:
    """Let a prompt of keys and values begin with what the base remembers of ``text`` (PEFT function); returns its rows
    ``(n, layers · 2 · width)``, float32.

    Args:
        num_virtual_tokens: how many of its tokens, if not as many as the prompt has. max_length: read no more tokens.
        use_chat_template: the text is the system's message, where the tokenizer has a template.
    """
    if use_chat_template and getattr(tokenizer, "chat_template", None):
        found = tokenizer.apply_chat_template([{"role": "system", "content": text}], tokenize=True, return_dict=False)
    else:
        found = tokenizer(text)["input_ids"]
    ids = torch.tensor([found[:max_length]], device=next(model.parameters()).device)
    with model.disable_adapter():
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    cache = output[cache_argument(model.get_base_model(), model.transformer_backbone_name)]
    return initialize_kv_prefix_from_past_key_values(model, adapter_name=adapter_name, past_key_values=cache, num_virtual_tokens=num_virtual_tokens)


def compose_cartridge_adapters(adapter_paths: Sequence[str | Path], *, output_path: str | Path, safe_serialization: bool = True) -> None:
    """Write into ``output_path`` one cartridge that holds those of the folders ``adapter_paths``, one after another; the tokens that stay are
    those of the first. ``safe_serialization`` cannot be switched off. (PEFT function of the same name.)

    Raises:
        ValueError: fewer than two, other adapters than cartridges, cartridges of different models, or a pickle is asked for.
    """
    if not safe_serialization:
        raise ValueError("Adapters are only written as safetensors: a pickle could run a program when it is opened.")
    folders = [Path(path) for path in adapter_paths]
    if len(folders) < 2:
        raise ValueError("Need at least 2 adapters to compose.")
    configs = [PeftConfig.from_pretrained(folder) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        if not isinstance(config, CartridgeConfig):
            raise ValueError(f"Adapter at '{folder}' is not a CARTRIDGE adapter (got {config.peft_type}).")
        for name in ("task_type", "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"):
            if getattr(config, name) != getattr(configs[0], name):
                raise ValueError(f"Incompatible CARTRIDGE configs for attribute '{name}'.")
    rows = torch.cat([read_tensors(folder)[PROMPT] for folder in folders])
    output = Path(output_path)
    output.mkdir(parents=True, exist_ok=True)
    with replacing(output / WEIGHTS) as temporary:
        save_file({PROMPT: rows}, temporary, metadata={"format": "pt"})
    replace(configs[0], num_virtual_tokens=len(rows)).save_pretrained(output)
