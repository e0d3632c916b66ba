"""Trainable tokens: the vectors of a few words learn, new ones or old; all other words keep theirs.

PEFT class ``TrainableTokensConfig``. What is learned is the row itself, not its change: so it also fits a base to which the words
were added at random.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.law import Method, Run, Site, TargetedConfig, Tensors, TensorSpec
from engine.specs.fields import knob

ROWS = "trainable_tokens_delta"


@dataclass
class TrainableTokensConfig(TargetedConfig):
    """Settings of trainable tokens, by PEFT's names and defaults. Without ``target_modules`` the input embedding is meant."""

    peft_type: ClassVar[str] = "TRAINABLE_TOKENS"

    token_indices: list[int] = knob(factory=list, label="Words", term="token_indices", help="Numbers of the tokens whose vectors learn.")
    init_weights: bool = knob(True, label="Standard start", term="init_weights", advanced=True,
                              help="Start with the words’ present vectors; off, they start at random.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.token_indices)) != len(self.token_indices):
            raise ValueError("`token_indices` names a token twice.")


class TrainableTokens(Method):
    """Rows of an embedding, or of an output layer: ``ΔW = rows − W0`` at the words, and nothing elsewhere."""

    title = "Trainable tokens"
    help = "Teaches the vectors of single words: right for new special tokens. Tiny files."
    config = TrainableTokensConfig
    prefix = "trainable_tokens_"
    needs_base = True
    light = True
    in_file: ClassVar[str] = ROWS

    def refuses(self, cfg: TrainableTokensConfig, site: Site) -> str:
        if site.kind not in ("embedding", "linear"):
            return "Only embeddings and linear layers have rows for words."
        words = site.columns if site.kind == "embedding" else site.out
        strange = [i for i in cfg.token_indices if not -words <= i < words]
        return f"It has rows for {words} words, and `token_indices` names {strange[0]}." if strange else ""

    def tensors(self, cfg: TrainableTokensConfig, site: Site) -> dict[str, TensorSpec]:
        width = site.out if site.kind == "embedding" else site.columns
        return {ROWS: TensorSpec((len(cfg.token_indices), width), torch.nn.init.normal_ if not cfg.init_weights else torch.nn.init.zeros_,
                                 file=self.in_file)}

    def starts_from_base(self, cfg: TrainableTokensConfig) -> bool:
        return cfg.init_weights

    def start(self, p: Tensors, cfg: TrainableTokensConfig, site: Site, W0: Tensor, fresh: Set[str]) -> None:
        if ROWS in fresh and cfg.init_weights:
            p[ROWS].copy_(self.rows(cfg, site, W0))

    def delta(self, p: Tensors, cfg: TrainableTokensConfig, site: Site, W0: Tensor | None = None) -> Tensor:
        places, change = self.places(cfg, site, W0), p[ROWS] - self.rows(cfg, site, W0)
        if site.kind == "embedding":
            return torch.zeros_like(W0).index_copy(1, places, change.T.to(W0.dtype))
        return torch.zeros_like(W0).index_copy(0, places, change.to(W0.dtype))

    def apply(self, p: Tensors, cfg: TrainableTokensConfig, site: Site, x: Tensor, W0: Tensor | None, run: Run) -> Tensor:
        places, change = self.places(cfg, site, W0), p[ROWS] - self.rows(cfg, site, W0)
        if site.kind == "embedding":       # to each word its row of the change, to all others the empty one behind them
            rows = torch.full((site.columns,), len(places), device=W0.device).index_copy(0, places, torch.arange(len(places), device=W0.device))
            return F.embedding(rows[x], F.pad(change, (0, 0, 0, 1)))
        known = F.linear(x, change.to(x.dtype))
        return known.new_zeros(*known.shape[:-1], site.out).index_copy(-1, places, known)

    @staticmethod
    def places(cfg: Any, site: Site, W0: Tensor) -> Tensor:
        """Where the words stand."""
        words = site.columns if site.kind == "embedding" else site.out
        return torch.tensor([i % words for i in cfg.token_indices], dtype=torch.long, device=W0.device)

    def rows(self, cfg: Any, site: Site, W0: Tensor) -> Tensor:
        """Their vectors in W0."""
        places = self.places(cfg, site, W0)
        return W0[:, places].T if site.kind == "embedding" else W0[places]


class TokenAdapter(TrainableTokens):
    """The same as a part of an adapter of another method (``trainable_token_indices``)."""

    in_file = f"token_adapter.{ROWS}"


METHOD, TOKEN_ADAPTER = TrainableTokens(), TokenAdapter()
