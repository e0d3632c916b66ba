"""From GGUF to a folder and back to the very same numbers and tokens."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from engine.bases.gguf_import import LAYER_NAMES, TOP_NAMES, convert, rope_halves
from engine.bases.load import load_model, load_tokenizer
from engine.errors import BadModel
from tests.support.tiny import make_model, make_tokenizer

TEXTS = ["We sell 12 rolls, täglich von 7 bis 18 Uhr.", "<|im_start|>user\nHi  there\n\n\t漢字 😀<|im_end|>\n", "don't", ""]


def write_gguf(path: Path, *, tied: bool = True, architecture: str = "llama", pre: str = "gpt-2", kind=gguf.GGMLQuantizationType.F32):
    """A tiny Llama as llama.cpp's converter writes it. Returns (model, tokenizer), the truth to compare with."""
    model, tokenizer = make_model(tied=tied), make_tokenizer()
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    state = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(state, key=state.get)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    short = {f"model.layers.{n}.{hf}": f"blk.{n}.{name}" for n in range(config.num_hidden_layers) for name, hf in LAYER_NAMES.items()}
    short |= {hf: name for name, hf in TOP_NAMES.items()}
    for name, tensor in model.state_dict().items():
        stem, _, suffix = name.rpartition(".")
        if stem == "lm_head" and tied:
            continue
        values = tensor.numpy()
        if heads := {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(short[stem].split(".")[-1]):
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        packed = kind if values.ndim > 1 and values.shape[-1] % 32 == 0 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{short[stem]}.{suffix}", gguf.quants.quantize(np.ascontiguousarray(values), packed), raw_dtype=packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, tokenizer


def converted(file: Path, folder: Path, dtype: str = "float32") -> Path:
    folder.mkdir()
    assert [event.stage for event in convert(file, folder, dtype)][-1] == "Writing the model"
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_is_the_same(tmp_path: Path, tied: bool):
    truth, _ = write_gguf(tmp_path / "m.gguf", tied=tied)
    model = load_model(converted(tmp_path / "m.gguf", tmp_path / "model"))
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, truth(tokens).logits)
    assert model.config.tie_word_embeddings is tied


def test_packed_numbers_come_out_as_gguf_unpacks_them(tmp_path: Path):
    """Every part of a packed file is within the step of its packing, and comes out in the format asked for."""
    truth, _ = write_gguf(tmp_path / "m.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    model = load_model(converted(tmp_path / "m.gguf", tmp_path / "model", "bfloat16"))
    assert model.dtype == torch.bfloat16
    wanted = truth.state_dict()
    for name, values in model.state_dict().items():
        step = wanted[name].abs().max() / 127 + wanted[name].abs().max() / 256
        assert (values.float() - wanted[name]).abs().max() <= step, name


def test_text_is_cut_into_the_same_tokens_and_comes_back(tmp_path: Path):
    _, truth = write_gguf(tmp_path / "m.gguf")
    tokenizer = load_tokenizer(converted(tmp_path / "m.gguf", tmp_path / "model"))
    for text in TEXTS:
        assert tokenizer(text).input_ids == truth(text).input_ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == truth.apply_chat_template(chat, tokenize=False)
    assert [getattr(tokenizer, role) for role in ("bos_token", "eos_token", "pad_token")] == [truth.bos_token, truth.eos_token, truth.pad_token]


def test_smollm_cuts_every_digit_alone(tmp_path: Path):
    write_gguf(tmp_path / "m.gguf", pre="smollm")
    tokenizer = load_tokenizer(converted(tmp_path / "m.gguf", tmp_path / "model"))
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("in 2026")
    assert [piece for piece, _ in pieces][-4:] == ["2", "0", "2", "6"]


def test_the_answer_stops_where_the_file_says(tmp_path: Path):
    write_gguf(tmp_path / "m.gguf")
    model = load_model(converted(tmp_path / "m.gguf", tmp_path / "model"))
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (1, 2, 0)


@pytest.mark.parametrize(("change", "said"), [({"architecture": "mamba"}, "mamba"), ({"pre": "unheard-of"}, "tokenizer")])
def test_what_is_not_known_is_refused_and_not_guessed(tmp_path: Path, change: dict, said: str):
    write_gguf(tmp_path / "m.gguf", **change)
    with pytest.raises(BadModel, match=said):
        converted(tmp_path / "m.gguf", tmp_path / "model")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_cut_file_is_damaged(tmp_path: Path, share: float):
    write_gguf(tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[:int(len(whole) * share)])
    with pytest.raises(BadModel):
        converted(tmp_path / "m.gguf", tmp_path / "model")


def test_something_else_is_not_a_gguf_file(tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(BadModel):
        converted(tmp_path / "m.gguf", tmp_path / "model")


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_rotary_halves_undo_rotary_pairs(heads: int):
    halves = np.arange(heads * 8 * 5).reshape(heads * 8, 5)
    pairs = halves.reshape(heads, 2, 4, 5).swapaxes(1, 2).reshape(halves.shape)
    assert np.array_equal(rope_halves(pairs, heads), halves) and not np.array_equal(pairs, halves)
