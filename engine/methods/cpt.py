"""Context-aware prompt tuning: examples stand before the input as tokens, and each may move a little way from its embedding.

Blau et al. 2024 (arXiv 2410.17222; section 4 for the projection and the loss). PEFT: ``CPTConfig``, ``CPTEmbedding``.

A type says what a token of the prompt is: 1 the input's template, 2 input, 3 the output's template, 0 mod 4 output, + 4 for each example.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.methods.prompt import PROMPT, BasePromptEncoder, PromptLearningConfig, PromptMethod, table, word_rows
from engine.specs.fields import knob

INPUT_TEMPLATE, INPUT, OUTPUT_TEMPLATE, OUTPUT = 1, 2, 3, 0     # types modulo 4
NO_WAY = 1e-10                             # how far tokens may move that are not to move


@dataclass
class CPTConfig(PromptLearningConfig):
    """Settings of context-aware prompt tuning (PEFT class of the same name)."""

    peft_type: ClassVar[str] = "CPT"

    cpt_token_ids: list[int] | None = None
    cpt_mask: list[int] | None = None
    cpt_tokens_type_mask: list[int] | None = None
    opt_weighted_loss_type: str = knob("none", label="Weigh the examples", term="opt_weighted_loss_type", choices=("none", "decay"), advanced=True,
                                       help="“decay” lets earlier examples count less.")
    opt_loss_decay_factor: float = knob(1.0, label="Weight of the example before", term="opt_loss_decay_factor", low=0, high=1, advanced=True,
                                        help="Each example counts this much of the one after it.")
    opt_projection_epsilon: float = knob(0.1, label="Way of the inputs", term="opt_projection_epsilon", low=0, advanced=True,
                                         help="How far the examples' inputs may move.")
    opt_projection_format_epsilon: float = knob(0.1, label="Way of the template", term="opt_projection_format_epsilon", low=0, advanced=True,
                                                help="How far the words between them may move.")
    tokenizer_name_or_path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task_type != "CAUSAL_LM":
            raise ValueError("CPTConfig only supports task_type = CAUSAL_LM.")
        self.one_of("opt_weighted_loss_type", ("none", "decay"))
        self.cpt_token_ids = [0] if self.cpt_token_ids is None else list(self.cpt_token_ids)
        self.num_virtual_tokens, self.num_transformer_submodules = len(self.cpt_token_ids), 1
        self.num_layers = self.token_dim = self.num_attention_heads = None
        for name in ("cpt_mask", "cpt_tokens_type_mask"):
            value = getattr(self, name)
            setattr(self, name, [1] * self.num_virtual_tokens if value is None else list(value))
            if len(getattr(self, name)) != self.num_virtual_tokens:
                raise ValueError("cpt_token_ids, cpt_mask and cpt_tokens_type_mask must have the same length.")
        if not all(self.cpt_mask):
            warnings.warn("`cpt_mask` hides nothing (nor does it in PEFT): leave tokens out of `cpt_token_ids` instead.", stacklevel=2)


class CPTEmbedding(BasePromptEncoder):
    """The tokens' own embeddings, fixed, and how far each has moved (PEFT's class); from a file, what the file differs from the tokens."""

    frozen = ("embedding",)

    def __init__(self, config: CPTConfig, word_embeddings: nn.Module, *, given: Mapping[str, Tensor] | None = None):
        super().__init__(config, word_embeddings, given=given)
        self.config = config
        if given is None:                  # both draw, as in PEFT, though neither number is kept
            self.embedding, self.delta_embedding = (nn.Embedding(config.num_virtual_tokens, config.token_dim) for _ in range(2))
        if given is None and config.inference_mode:
            nn.init.zeros_(self.delta_embedding.weight)
            return
        self.embedding = table(word_rows(word_embeddings, config.cpt_token_ids, config.num_virtual_tokens))
        start = self.embedding.weight
        self.delta_embedding = table(torch.zeros_like(start) if given is None else given[PROMPT].to(start) - start)

    def forward(self, indices: Tensor, task_ids: Tensor | None = None) -> Tensor:
        way = self.delta_embedding.weight
        if way.requires_grad:              # back into the ball, before every step as after it
            with torch.no_grad():
                way.mul_(self._shares(way))
        moves = self._types(way.device) % 4 != OUTPUT
        way = torch.where(moves.unsqueeze(1), way, way.detach())
        return self.embedding(indices) + way[indices]

    def _types(self, device: torch.device) -> Tensor:
        return torch.tensor(self.config.cpt_tokens_type_mask, device=device)

    def _shares(self, way: Tensor) -> Tensor:
        """``(n, 1)``: what remains of each way when none is longer than it may be, by more than rounding: then a second time changes nothing."""
        types, unit = self._types(way.device), math.sqrt(self.config.token_dim / 2048)
        allowed = torch.where(types % 4 == INPUT, self.config.opt_projection_epsilon, self.config.opt_projection_format_epsilon) * unit
        allowed = torch.where((types > 0) & (types % 4 != OUTPUT), allowed, NO_WAY).unsqueeze(1).to(way.dtype)
        length = way.norm(dim=1, keepdim=True)
        return torch.where(length > allowed * (1 + 4 * torch.finfo(way.dtype).eps), allowed / length, 1)


def cpt_targets(cfg: CPTConfig, labels: Tensor, input_type_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the prompt and the input ``(batch, T)`` are to answer.

    Args:
        input_type_mask: the input's types ``(batch, T)``; None: all of it is output.

    Returns:
        (labels ``(batch, n + T)``, −100 where nothing is answered; types ``(batch, n + T)``). The input's examples count on from the
        prompt's: its types go up by whole examples (PEFT adds the highest type as it is, and loses all labels if that is no output).
    """
    prompt_types = torch.tensor(cfg.cpt_tokens_type_mask, device=labels.device)
    types = torch.full_like(labels, 4) if input_type_mask is None else input_type_mask.to(labels)
    examples = (int(prompt_types.max()) + 3) // 4 * 4
    types = torch.cat([prompt_types.expand(len(labels), -1), torch.where(types > 0, types + examples, types)], dim=1)
    labels = torch.cat([torch.tensor(cfg.cpt_token_ids, device=labels.device).expand(len(labels), -1), labels], dim=1)
    return torch.where((types > 0) & (types % 4 == OUTPUT), labels, -100), types


def cpt_loss(cfg: CPTConfig, logits: Tensor, labels: Tensor, types: Tensor) -> Tensor:
    """The mean of the cross entropies of all answered tokens, each weighed by how many examples come after its own (section 4.2)."""
    labels, types = labels[:, 1:], types[:, 1:]
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), labels, reduction="none", ignore_index=-100)
    weights = torch.ones_like(losses)
    if cfg.opt_weighted_loss_type == "decay":
        for row, kinds in zip(weights, types, strict=True):
            outputs = kinds[(kinds > 0) & (kinds % 4 == OUTPUT)].unique()                    # sorted: the last is the input's
            for later, kind in enumerate(outputs.flip(0).tolist()):
                row[kinds == kind] = cfg.opt_loss_decay_factor ** later
    answered = labels != -100
    return (losses * weights)[answered].mean()


class CPT(PromptMethod):
    """The law: a table of tokens, each within a ball round its own embedding."""

    title = "Context-aware prompt tuning"
    help = "Puts your examples before every question and lets their words drift a little. For a handful of examples."
    config = CPTConfig
    own_loss = True

    def loss(self, cfg: Any, logits: Tensor, labels: Tensor, input_types: Tensor | None) -> Tensor:
        return cpt_loss(cfg, logits, *cpt_targets(cfg, labels.to(logits.device), input_types))

    def encoder(self, cfg: Any, words: nn.Module | None, given: Mapping[str, Tensor] | None = None, **start: Any) -> BasePromptEncoder:
        return CPTEmbedding(cfg, words, given=given)


METHOD = CPT()
