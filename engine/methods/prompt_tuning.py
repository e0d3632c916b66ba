"""Prompt tuning: ``[P; embed(x)]``, learned rows before the input's embeddings.

Lester et al. 2021 (arXiv 2104.08691). PEFT: ``PromptTuningConfig``, ``PromptEmbedding``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine.methods.prompt import PROMPT, BasePromptEncoder, PromptMethod, WordPromptConfig, first_words, table, word_rows
from engine.specs.fields import knob


@dataclass
class PromptTuningConfig(WordPromptConfig):
    """Settings of prompt tuning (PEFT class of the same name)."""

    peft_type: ClassVar[str] = "PROMPT_TUNING"
    starts: ClassVar[tuple[str, ...]] = ("RANDOM", "TEXT", "SAMPLE_VOCAB")

    prompt_tuning_init: str = knob("RANDOM", label="Begins with", term="prompt_tuning_init", choices=("RANDOM", "TEXT", "SAMPLE_VOCAB"),
                                   help="Noise, a text of yours, or random words. A text that says what to do learns fastest.")


class PromptEmbedding(BasePromptEncoder):
    """The rows themselves (PEFT's class). ``text``: token ids to begin with, repeated or cut to the number of rows; by default the config's."""

    def __init__(self, config: PromptTuningConfig, word_embeddings: nn.Module | None = None, *, text: Sequence[int] = (),
                 given: Mapping[str, Tensor] | None = None):
        super().__init__(config, word_embeddings, given=given)
        if given is not None:
            self.embedding = table(given[PROMPT])
            return
        rows = config.total_tokens
        self.embedding = nn.Embedding(rows, config.token_dim)
        if config.prompt_tuning_init != "RANDOM" and not config.inference_mode:
            ids = text or first_words(config) if config.prompt_tuning_init == "TEXT" else torch.randint(0, word_embeddings.num_embeddings, (rows,))
            self.embedding = table(word_rows(word_embeddings, ids, rows))


class PromptTuning(PromptMethod):
    """The law: the prompt is a table."""

    title = "Prompt tuning"
    help = "Learns a few invisible words before every question. The smallest files of all; learns little and slowly."
    config = PromptTuningConfig

    def encoder(self, cfg: Any, words: nn.Module | None, given: Mapping[str, Tensor] | None = None, **start: Any) -> BasePromptEncoder:
        return PromptEmbedding(cfg, words, given=given, **start)


METHOD = PromptTuning()
