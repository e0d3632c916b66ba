"""LN tuning: the norms of a model learn as a whole, and nothing else does. (Any module can be named.)

Zhao et al. 2023 (arXiv 2312.11420). PEFT class ``LNTuningConfig``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from engine.law import TargetedConfig, Whole

# by model family: the norms that learn where `target_modules` is left open, as PEFT chooses
_BEFORE_AND_AFTER = ["input_layernorm", "post_attention_layernorm", "norm"]
_FAMILIES: dict[str, list[str]] = {
    **dict.fromkeys(["llama", "mistral", "gemma"], _BEFORE_AND_AFTER),
    **dict.fromkeys(["gemma2", "gemma3_text"], [*_BEFORE_AND_AFTER, "pre_feedforward_layernorm", "post_feedforward_layernorm"]),
    **dict.fromkeys(["bloom", "falcon"], ["input_layernorm", "post_attention_layernorm", "ln_f"]),
    **dict.fromkeys(["qwen2", "qwen3"], ["post_attention_layernorm"]), **dict.fromkeys(["t5", "mt5"], ["layer_norm", "final_layer_norm"]),
    "llava": ["multi_modal_projector", *_BEFORE_AND_AFTER, "embed_tokens", "lm_head"],
    "bart": ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"], "gpt2": ["ln_1", "ln_2", "ln_f"], "gptj": ["ln_1", "ln_f"],
    "blip-2": ["layernorm", "LayerNorm", "final_layer_norm", "self_attn_layer_norm"], "phi": ["input_layernorm", "final_layernorm"],
}


@dataclass
class LNTuningConfig(TargetedConfig):
    """Settings of LN tuning, by PEFT's names and defaults."""

    peft_type: ClassVar[str] = "LN_TUNING"


class LnTuning(Whole):
    """Copies of whole modules; several of them at once add their differences."""

    title = "LN tuning"
    help = "Only the model's norms learn: tiny files, good for a tone or a modality, little new knowledge."
    config = LNTuningConfig
    prefix = "ln_tuning_layers"
    layers = _FAMILIES

    def settle(self, cfg: Any, model_type: str | None) -> None:
        super().settle(cfg, model_type)
        if cfg.target_modules is None:     # LoRA's layers, which would be the others' choice, are no norms
            raise ValueError("Please specify `target_modules` in `peft_config`")

    def in_file(self, leaf: str) -> str:
        return f"{self.prefix}.{leaf}"


METHOD = LnTuning()
