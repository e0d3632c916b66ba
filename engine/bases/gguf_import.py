"""A GGUF file becomes a Hugging Face folder that can be trained: weights, configuration, tokenizer and chat template.

Written here, and not left to transformers, for three reasons: it takes seconds instead of half a minute, it keeps the tokenizer's way of
cutting digits (``tokenizer.ggml.pre``), and it needs one tensor's worth of memory beside the result. Names and
shapes after llama.cpp's ``convert_hf_to_gguf.py`` (Llama family); the numbers are exactly those of `gguf.quants.dequantize`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from collections.abc import Iterator

import numpy as np

from engine.errors import BadModel
from engine.events import Progress

LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj"}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
NOT_NEEDED = {"rope_freqs"}                # computed from the configuration
DIGITS_ALONE = {"smollm": True, "gpt-2": False, "default": False}      # tokenizer.ggml.pre → is every digit a token of its own?
CONTROL, USER_DEFINED = 3, 4               # tokenizer.ggml.token_type


def convert(file: Path | str, folder: Path | str, dtype: str = "bfloat16") -> Iterator[Progress]:
    """Write model files for ``file`` into the existing ``folder``; yields `Progress` in tensors, a pause may be made between any two.

    Raises `BadModel` when the file is damaged, or of an architecture or tokenizer that is not known here (nothing is guessed).
    """
    file, folder = Path(file), Path(folder)
    yield Progress("Reading the model file", 0, 4)
    import torch                           # seconds by itself: said before it begins
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    yield Progress("Reading the model file", 1, 4)
    try:
        reader = GGUFReader(file)
        facts = _Facts(reader, file)
    except (ValueError, KeyError, IndexError, OSError, OverflowError) as error:
        raise BadModel(f"The file {file.name} cannot be read.", "It is damaged, or not a GGUF file.", "Get it again.",
                       details=f"{type(error).__name__}: {error}", path=str(file)) from error
    yield Progress("Reading the model file", 2, 4)
    shapes = {tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors}
    if "token_embd.weight" not in shapes:
        raise BadModel(f"The file {file.name} cannot be read.", "It has no word table.", "Get it again.", path=str(file))
    config = llama_config(facts, vocabulary=shapes["token_embd.weight"][0], tied="output.weight" not in shapes)
    yield Progress("Reading the model file", 3, 4)
    tokenizer = make_tokenizer(facts)
    tensors: dict[str, torch.Tensor] = {}
    for done, tensor in enumerate(reader.tensors):
        yield Progress("Unpacking the model", done, len(reader.tensors), "tensors")
        if tensor.name.split(".")[0] in NOT_NEEDED:
            continue
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise BadModel(f"The file {file.name} cannot be read.", f"Its numbers are packed as {tensor.tensor_type.name}.",
                           "Get the model in another format.", details=str(error), path=str(file)) from error
        if re.search(r"\.attn_[qk]\.", tensor.name):
            heads = config.num_attention_heads if ".attn_q." in tensor.name else config.num_key_value_heads
            values = rope_halves(values, heads)
        tensors[hf_name(tensor.name)] = torch.from_numpy(np.require(values, requirements="CW")).to(getattr(torch, dtype))
    config.dtype = dtype
    yield Progress("Writing the model", len(reader.tensors), len(reader.tensors), "tensors")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    generation_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def hf_name(name: str) -> str:
    """``blk.3.attn_q.weight`` → ``model.layers.3.self_attn.q_proj.weight``. Raises `BadModel` for a tensor that no Llama has."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        layer, part, kind = match.groups()
        if part in LAYER_NAMES:
            return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"
    elif match := re.fullmatch(r"(\w+)\.(weight|bias)", name):
        if match[1] in TOP_NAMES:
            return f"{TOP_NAMES[match[1]]}.{match[2]}"
    raise BadModel("This kind of GGUF file is not known here.", f"It has a part called {name}.", "Get the original model folder instead.")


def rope_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF stores each head's rotary pairs side by side, Hugging Face as two halves. ``[heads·d, in]`` (or a bias ``[heads·d]``)."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


class _Facts:
    """The key-value part of a GGUF file; ``facts("llama.block_count")`` raises `KeyError`, a default prevents that."""

    def __init__(self, reader: Any, file: Path):
        self.file, self._fields = file, reader.fields
        self.architecture = self("general.architecture")

    def __call__(self, key: str, *default: Any) -> Any:
        key = key.replace("{arch}", getattr(self, "architecture", ""))
        if key not in self._fields and default:
            return default[0]
        value = self._fields[key].contents()
        return float(str(np.float32(value))) if isinstance(value, float) else value     # 1e-05, not 9.999999747378752e-06


def llama_config(facts: _Facts, *, vocabulary: int, tied: bool):
    """The `transformers.LlamaConfig` that the file describes. Raises `BadModel` for other architectures."""
    from transformers import LlamaConfig

    if facts.architecture != "llama" or facts("llama.rope.scaling.type", "none") != "none" or facts("llama.expert_count", 0):
        raise BadModel(f"GGUF files of the kind {facts.architecture} cannot be unpacked here yet.", "Only plain Llama models can.",
                       "Get the original model folder instead.", path=str(facts.file))
    hidden, heads = facts("llama.embedding_length"), facts("llama.attention.head_count")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"], vocab_size=vocabulary, hidden_size=hidden,
        intermediate_size=facts("llama.feed_forward_length"), num_hidden_layers=facts("llama.block_count"), num_attention_heads=heads,
        num_key_value_heads=facts("llama.attention.head_count_kv", heads), head_dim=facts("llama.attention.key_length", hidden // heads),
        max_position_embeddings=facts("llama.context_length"), rms_norm_eps=facts("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": facts("llama.rope.freq_base", 10000.0)}, tie_word_embeddings=tied,
        bos_token_id=facts("tokenizer.ggml.bos_token_id", None), eos_token_id=facts("tokenizer.ggml.eos_token_id"),
        pad_token_id=facts("tokenizer.ggml.padding_token_id", None))


def generation_config(config):
    """Only what stops an answer; how it is chosen is asked of the person each time."""
    from transformers import GenerationConfig

    return GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)


def make_tokenizer(facts: _Facts):
    """The byte-level BPE tokenizer of the file as a `transformers.PreTrainedTokenizerFast`. Raises `BadModel` for other kinds."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind, pre = facts("tokenizer.ggml.model"), facts("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in DIGITS_ALONE:
        raise BadModel("The tokenizer of this GGUF file is not known here.", f"It is of the kind {kind}/{pre}.",
                       "Get the original model folder instead.", path=str(facts.file))
    tokens, kinds = facts("tokenizer.ggml.tokens"), facts("tokenizer.ggml.token_type")
    merges = [tuple(pair.split(" ", 1)) for pair in facts("tokenizer.ggml.merges")]
    bpe = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_only]) if DIGITS_ALONE[pre] else bytes_only
    bpe.decoder = decoders.ByteLevel()
    bpe.add_tokens([AddedToken(t, special=k == CONTROL, normalized=False) for t, k in zip(tokens, kinds) if k in (CONTROL, USER_DEFINED)])
    named = {role: facts(f"tokenizer.ggml.{key}_token_id", None)
             for role, key in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding"))}
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, chat_template=facts("tokenizer.chat_template", None), model_max_length=facts("{arch}.context_length"),
        clean_up_tokenization_spaces=False, **{role: tokens[number] for role, number in named.items() if number is not None})
