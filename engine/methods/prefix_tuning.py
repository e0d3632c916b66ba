"""Prefix tuning: learned keys and values that every layer's attention finds before those of the input.

Li and Liang 2021 (arXiv 2101.00190). PEFT: ``PrefixTuningConfig``, ``PrefixEncoder``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine.methods.prompt import PROMPT, BasePromptEncoder, CacheMethod, PromptLearningConfig, table
from engine.specs.fields import knob


@dataclass
class PrefixTuningConfig(PromptLearningConfig):
    """Settings of prefix tuning (PEFT class of the same name)."""

    peft_type: ClassVar[str] = "PREFIX_TUNING"

    init_weights: str | None = knob(None, label="Begins with", term="init_weights", choices=(None, "zero"), advanced=True,
                                    help="Empty begins with noise; “zero” with keys and values that are zero.")
    encoder_hidden_size: int | None = knob(None, label="Width of the network", term="encoder_hidden_size", low=1, advanced=True,
                                           help="Of the network of the setting below; empty means as wide as the keys.")
    prefix_projection: bool = knob(False, label="Learn through a network", term="prefix_projection", advanced=True,
                                   help="A network computes the prefix while it learns: steadier, with many more numbers to learn.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of("init_weights", (None, "zero"))


class PrefixEncoder(BasePromptEncoder):
    """Rows ``(n, layers · 2 · width)``, or rows ``(n, width)`` and the network ``transform`` over them (PEFT's class)."""

    def __init__(self, config: PrefixTuningConfig, word_embeddings: nn.Module | None = None, *, given: Mapping[str, Tensor] | None = None):
        super().__init__(config, word_embeddings, given=given)
        if given is not None:
            self.embedding = table(given[PROMPT])
            return
        width, whole = config.token_dim, METHOD.width(config)
        self.is_table = config.inference_mode or not config.prefix_projection
        self.embedding = nn.Embedding(config.num_virtual_tokens, whole if self.is_table else width)
        if not self.is_table:
            self.transform = nn.Sequential(nn.Linear(width, config.encoder_hidden_size), nn.Tanh(), nn.Linear(config.encoder_hidden_size, whole))
        if config.init_weights == "zero":
            for parameter in (self.embedding if self.is_table else self.transform[-1]).parameters():
                nn.init.zeros_(parameter)

    def forward(self, indices: Tensor, task_ids: Tensor | None = None) -> Tensor:
        rows = self.embedding(indices)
        return rows if self.is_table else self.transform(rows)

    @torch.no_grad()
    def load_prompt_embeddings(self, prompt_embeddings: Tensor) -> None:
        """Begin with the keys and values ``prompt_embeddings`` ``(n, layers · 2 · width)`` (PEFT method of the same name).

        Raises:
            ValueError: another shape, or a network computes them.
        """
        if not self.is_table:
            raise ValueError("Cannot load flattened prompt embeddings when `prefix_projection=True`.")
        if prompt_embeddings.shape != self.embedding.weight.shape:
            raise ValueError(f"Invalid `prompt_embeddings` shape. Expected {tuple(self.embedding.weight.shape)}, "
                             f"got {tuple(prompt_embeddings.shape)}.")
        self.embedding.weight.copy_(prompt_embeddings)


class PrefixTuning(CacheMethod):
    """The law: the prompt is a table of keys and values, or computed while it learns."""

    title = "Prefix tuning"
    help = "Learns what every layer remembers before a question. Learns more than a prompt; the file grows with the model's depth."
    config = PrefixTuningConfig

    def encoder(self, cfg: Any, words: nn.Module | None, given: Mapping[str, Tensor] | None = None, **start: Any) -> BasePromptEncoder:
        return PrefixEncoder(cfg, words, given=given)


METHOD = PrefixTuning()
