"""P-tuning: the prompt is what a small network makes of learned rows; only the prompt is kept.

Liu et al. 2021 (arXiv 2103.10385). PEFT: ``PromptEncoderConfig``, ``PromptEncoder``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from engine.methods.prompt import PROMPT, BasePromptEncoder, PromptLearningConfig, PromptMethod, table
from engine.specs.fields import knob


@dataclass
class PromptEncoderConfig(PromptLearningConfig):
    """Settings of p-tuning (PEFT class of the same name)."""

    peft_type: ClassVar[str] = "P_TUNING"

    encoder_reparameterization_type: str = knob("MLP", label="Network", term="encoder_reparameterization_type", choices=("MLP", "LSTM"),
                                                advanced=True, help="What computes the prompt while it learns.")
    encoder_hidden_size: int | None = knob(None, label="Width of the network", term="encoder_hidden_size", low=1, advanced=True,
                                           help="Empty means as wide as the model.")
    encoder_num_layers: int = knob(2, label="Layers of the network", term="encoder_num_layers", low=1, advanced=True, help="Of an LSTM only.")
    encoder_dropout: float = knob(0.0, label="Dropout of the network", term="encoder_dropout", low=0, high=1, advanced=True,
                                  help="Share of numbers dropped between the layers of an LSTM while it learns.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of("encoder_reparameterization_type", ("MLP", "LSTM"))


class PromptEncoder(BasePromptEncoder):
    """Learned rows and the network over them; a prompt from a file has the rows alone (PEFT's class)."""

    def __init__(self, config: PromptEncoderConfig, word_embeddings: nn.Module | None = None, *, given: Mapping[str, Tensor] | None = None):
        super().__init__(config, word_embeddings, given=given)
        if given is not None:
            self.embedding = table(given[PROMPT])
            return
        self.embedding = nn.Embedding(config.total_tokens, config.token_dim)
        if config.inference_mode:
            return
        width, hidden = config.token_dim, config.encoder_hidden_size
        if config.encoder_reparameterization_type == "LSTM":
            self.lstm_head = nn.LSTM(width, hidden, config.encoder_num_layers, dropout=config.encoder_dropout, bidirectional=True,
                                     batch_first=True)
            self.mlp_head = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))
            return
        if config.encoder_num_layers != 2 or config.encoder_dropout:
            warnings.warn("for MLP, the argument `encoder_num_layers` is ignored. Exactly 2 MLP layers are used.", stacklevel=2)
        self.mlp_head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, indices: Tensor, task_ids: Tensor | None = None) -> Tensor:
        rows = self.embedding(indices)
        if self.is_table:
            return rows
        return self.mlp_head(self.lstm_head(rows)[0] if hasattr(self, "lstm_head") else rows)


class PTuning(PromptMethod):
    """The law: the prompt is computed while it learns, and a table afterwards."""

    title = "P-tuning"
    help = "Prompt tuning whose words a small network chooses. Learns more steadily; the file is as small."
    config = PromptEncoderConfig

    def encoder(self, cfg: Any, words: nn.Module | None, given: Mapping[str, Tensor] | None = None, **start: Any) -> BasePromptEncoder:
        return PromptEncoder(cfg, words, given=given)


METHOD = PTuning()
