"""Cartridge: a key-value cache that is trained itself; its first tokens, on which attention rests, stay as they are.

Eyuboglu et al. 2025 (arXiv 2506.06266). PEFT: ``CartridgeConfig``, ``CartridgeEncoder``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine.methods.prompt import PROMPT, BasePromptEncoder, CacheMethod, PromptLearningConfig
from engine.specs.fields import knob


@dataclass
class CartridgeConfig(PromptLearningConfig):
    """Settings of a cartridge (PEFT class of the same name)."""

    peft_type: ClassVar[str] = "CARTRIDGE"

    num_frozen_tokens: int = knob(1, label="Tokens that stay", term="num_frozen_tokens", low=0, advanced=True,
                                  help="How many of the first tokens never learn; one keeps the learning steady.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_frozen_tokens < 0:
            raise ValueError(f"`num_frozen_tokens` must be >= 0, got {self.num_frozen_tokens}.")
        if self.num_virtual_tokens is not None and self.num_frozen_tokens > self.num_virtual_tokens:
            raise ValueError(f"`num_frozen_tokens` must be <= `num_virtual_tokens`, got num_frozen_tokens={self.num_frozen_tokens} and "
                             f"num_virtual_tokens={self.num_virtual_tokens}.")


class CartridgeEncoder(BasePromptEncoder):
    """Keys and values ``(n, layers · 2 · width)``, cut into those that stay and those that learn (PEFT's class)."""

    frozen = ("frozen_embedding",)

    def __init__(self, config: CartridgeConfig, word_embeddings: nn.Module | None = None, *, given: Mapping[str, Tensor] | None = None):
        super().__init__(config, word_embeddings, given=given)
        self.num_frozen_tokens, width = config.num_frozen_tokens, METHOD.width(config)
        self.frozen_embedding = nn.Parameter(torch.empty(self.num_frozen_tokens, width), False) if self.num_frozen_tokens else None
        self.trainable_embedding = nn.Parameter(torch.empty(config.num_virtual_tokens - self.num_frozen_tokens, width))
        if given is not None:
            self.load_prompt_embeddings(given[PROMPT])
            return
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    @property
    def weight(self) -> Tensor:
        """All rows."""
        return self.trainable_embedding if self.frozen_embedding is None else torch.cat([self.frozen_embedding, self.trainable_embedding])

    @property
    def rows(self) -> int:
        return self.num_frozen_tokens + len(self.trainable_embedding)

    def forward(self, indices: Tensor, task_ids: Tensor | None = None) -> Tensor:
        return self.weight[indices]

    @torch.no_grad()
    def load_prompt_embeddings(self, prompt_embeddings: Tensor) -> None:
        """Begin with the keys and values ``prompt_embeddings`` ``(n, layers · 2 · width)`` (PEFT method of the same name).

        Raises `ValueError` for other sizes."""
        if tuple(prompt_embeddings.shape) != (self.rows, self.trainable_embedding.shape[1]):
            raise ValueError(f"Invalid `prompt_embeddings` shape. Expected ({self.rows}, {self.trainable_embedding.shape[1]}), "
                             f"got {tuple(prompt_embeddings.shape)}.")
        self.trainable_embedding.copy_(prompt_embeddings[self.num_frozen_tokens:])
        if self.frozen_embedding is not None:
            self.frozen_embedding.copy_(prompt_embeddings[:self.num_frozen_tokens])


class Cartridge(CacheMethod):
    """The law: the prompt is a table of keys and values whose head is fixed."""

    title = "Cartridge"
    help = "A learned memory of a long text: answers as if the text stood before the question, without reading it each time."
    config = CartridgeConfig

    def encoder(self, cfg: Any, words: nn.Module | None, given: Mapping[str, Tensor] | None = None, **start: Any) -> BasePromptEncoder:
        return CartridgeEncoder(cfg, words, given=given)


METHOD = Cartridge()
