"""A shadow as a language model, or a classifier, of its own, without the model it was taught beside."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast, SequenceClassifierOutput

from engine.model.prompt_learning import cache_name


class DetachedShadowModel(PreTrainedModel, GenerationMixin):
    """``head(projection(backbone(x)))`` (PEFT class of the same name): it answers, or classifies, like any small model.

    Args:
        words: embeddings for a backbone without its own. owned: they are saved with this model; otherwise they stay another model's.
    """

    main_input_name, base_model_prefix = "input_ids", "backbone"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, backbone: PreTrainedModel, projection: nn.Module, head: nn.Module | None, *, words: nn.Module | None = None,
                 owned: bool = False, classifies: bool = False):
        super().__init__(backbone.config)
        self.is_classification = classifies
        self.backbone, self.shadow_hidden_projection, self.head = backbone, projection, head
        if owned and words is not None:
            backbone.embed_tokens, words = words, None
        self._words = [words]              # in a list: no submodule
        self.generation_config = getattr(backbone, "generation_config", None) or GenerationConfig.from_model_config(self.config)

    def can_generate(self) -> bool:
        return getattr(self, "head", None) is not None and not self.is_classification

    def get_input_embeddings(self) -> nn.Module:
        return self._words[0] or self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        if self._words[0] is not None:
            self._words[0] = value
        else:
            self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return None if getattr(self, "is_classification", True) else self.head

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Logits as of any model of its kind, and the loss where there are ``labels``; without a head the states ``(batch, seq, width)``."""
        kwargs = {key: value for key, value in kwargs.items() if key not in ("logits_to_keep", "num_logits_to_keep", "return_dict")}
        if self._words[0] is not None and kwargs.get("inputs_embeds") is None:
            kwargs["inputs_embeds"], input_ids = self._words[0](input_ids), None
        seen = self.backbone(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        hidden = self.shadow_hidden_projection(seen.last_hidden_state)
        if self.head is None:
            return hidden
        logits = self.head(last_words(hidden, attention_mask) if self.is_classification else hidden)
        if self.is_classification:
            return SequenceClassifierOutput(loss=None if labels is None else class_error(logits, labels), logits=logits)
        loss = None if labels is None else F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        name = cache_name(self.backbone)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **({name: getattr(seen, name, None)} if name else {}))


def last_words(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The states ``(batch, width)`` of the last token of each row that is no padding."""
    if mask is None:
        return hidden[:, -1]
    last = (mask.ne(0) * torch.arange(mask.shape[-1], device=mask.device)).argmax(-1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def class_error(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of transformers' classifiers: one number, one class of several, or several at once, by the labels' shape and dtype."""
    if logits.shape[-1] == 1:
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).view(-1))
    if labels.dtype in (torch.long, torch.int):
        return F.cross_entropy(logits, labels.view(-1).long())
    return F.binary_cross_entropy_with_logits(logits, labels)
