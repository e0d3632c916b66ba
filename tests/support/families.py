"""Tiny random models of the architectures that adapters meet: two layers, 32 wide, 64 words; made by code, no download."""

from __future__ import annotations

from typing import Any

import torch

SIZES = {"vocab_size": 64, "initializer_range": 0.3}
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama": {**SIZES, **BLOCKS, **SPECIAL, "num_key_value_heads": 2},
    "Qwen2": {**SIZES, **BLOCKS, **SPECIAL, "num_key_value_heads": 2},
    "Qwen3": {**SIZES, **BLOCKS, **SPECIAL, "num_key_value_heads": 2, "head_dim": 8},
    "Mistral": {**SIZES, **BLOCKS, **SPECIAL, "num_key_value_heads": 2, "num_hidden_layers": 3, "sliding_window": 6},
    "Gemma3Text": {**SIZES, **BLOCKS, **SPECIAL, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 6},
    "Phi": {**SIZES, **BLOCKS, **SPECIAL, "num_key_value_heads": 2},
    "Phi3": {**SIZES, **BLOCKS, **SPECIAL, "num_key_value_heads": 2},
    "Mixtral": {**SIZES, **BLOCKS, **SPECIAL, "num_key_value_heads": 2, "num_local_experts": 3},
    "Qwen3Moe": {**SIZES, **BLOCKS, **SPECIAL, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 3, "num_experts_per_tok": 2,
                 "moe_intermediate_size": 16},
    "SmolLM3": {**SIZES, **BLOCKS, **SPECIAL, "num_key_value_heads": 2, "no_rope_layer_interval": 2},
    "Granite": {**SIZES, **BLOCKS, **SPECIAL, "num_key_value_heads": 2, "logits_scaling": 4.0, "residual_multiplier": 0.5},
    "Gemma2": {**SIZES, **BLOCKS, **SPECIAL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 3.0},
    "Mamba": {**SIZES, **SPECIAL, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "Qwen3_5Text": {**SIZES, **BLOCKS, **SPECIAL, "num_key_value_heads": 2, "head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
                    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
    "GPT2": {**SIZES, **SPECIAL, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "OPT": {**SPECIAL, "vocab_size": 64, "init_std": 0.3, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
            "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "Bert": {**SIZES, **BLOCKS},
    "Roberta": {**SIZES, **BLOCKS, "pad_token_id": 1},
    "DebertaV2": {**SIZES, **BLOCKS, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "ViT": {**BLOCKS, "initializer_range": 0.3, "image_size": 8, "patch_size": 4, "num_labels": 3},
    "T5": {"vocab_size": 64, "initializer_factor": 1.5, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
           "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    "Bart": {"vocab_size": 64, "init_std": 0.3, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": 1,
             "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None},
}


def family(name: str, head: str, seed: int = 0, **settings: Any) -> torch.nn.Module:
    """A random float32 model in eval mode, e.g. ``family("GPT2", "LMHeadModel")``; it never ends an answer by itself."""
    import transformers

    config = getattr(transformers, f"{name}Config")(**{**CONFIGS[name], **settings})
    if not config.is_encoder_decoder:
        config.eos_token_id = None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, name.removesuffix("Text") + head)(config)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = None
    return model.eval()


def inputs(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a model of any family is called with."""
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8).sin()}
    return {"input_ids": ids(), **({"decoder_input_ids": ids(2, 4) + 3} if model.config.is_encoder_decoder else {})}


def ids(batch: int = 2, length: int = 10) -> torch.Tensor:
    """Token ids without padding or special tokens, contiguous."""
    return torch.arange(batch * length).reshape(batch, length) * 7 % 60 + 4
