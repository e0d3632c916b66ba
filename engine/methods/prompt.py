"""What the methods of prompt learning have in common: a learned prompt that stands before every input. Nothing of the base is changed.

A prompt is either *embeddings*, rows put before the input's own, or *keys and values*, a cache that the input's tokens look back
upon. How it enters a model is written once, in `engine.model.prompt_learning`; a method says only what the prompt is made of.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine.law import PeftConfig, Tensors
from engine.specs.fields import knob

PROMPT = "prompt_embeddings"               # the key of the finished prompt in the file


@dataclass
class PromptLearningConfig(PeftConfig):
    """Base of the configs of prompt learning (PEFT class of the same name). What is None is taken from the model's config."""

    num_virtual_tokens: int | None = knob(
        None, label="Length of the prompt", term="num_virtual_tokens", unit="tokens", low=1,
        help="How many invisible words stand before every question. More can learn more and cost time in every answer.")
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    modules_to_save: list[str] | None = knob(None, label="Layers learned whole", term="modules_to_save", advanced=True,
                                             help="Layers that are copied and trained completely (large files).")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):                 # members of somebody's enums are their values
            value = getattr(self, field.name)
            setattr(self, field.name, getattr(value, "value", value))
        if self.num_virtual_tokens is not None and self.num_virtual_tokens < 1:
            raise ValueError(f"`num_virtual_tokens` must be at least 1, not {self.num_virtual_tokens}.")

    @property
    def is_prompt_learning(self) -> bool:
        return True

    @property
    def total_tokens(self) -> int:
        """Rows of the prompt, all submodules together (an encoder-decoder may have a prompt for each half)."""
        return self.num_virtual_tokens * (self.num_transformer_submodules or 1)

    def one_of(self, name: str, allowed: Sequence[Any]) -> None:
        """Raise `ValueError` if the setting ``name`` is none of these."""
        if getattr(self, name) not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(map(str, allowed))}, not {getattr(self, name)!r}.")


@dataclass
class WordPromptConfig(PromptLearningConfig):
    """Base of the configs whose prompt may begin with words; they say in ``starts`` with what else."""

    starts: ClassVar[tuple[str, ...]] = ()

    prompt_tuning_init: str = "RANDOM"
    prompt_tuning_init_text: str | None = knob(None, label="Text to begin with", term="prompt_tuning_init_text",
                                               help="What you would tell the model; repeated or cut to the length of the prompt.")
    tokenizer_name_or_path: str | None = knob(None, label="Tokenizer", term="tokenizer_name_or_path", advanced=True,
                                              help="Folder or name of the tokenizer that reads the text.")
    tokenizer_kwargs: dict | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of("prompt_tuning_init", self.starts)
        if self.prompt_tuning_init == "TEXT":
            for name in ("tokenizer_name_or_path", "prompt_tuning_init_text"):
                if not getattr(self, name):
                    raise ValueError(f"When prompt_tuning_init='TEXT', {name} can't be {getattr(self, name)}.")
        elif self.tokenizer_kwargs:
            raise ValueError("tokenizer_kwargs only valid when using prompt_tuning_init='TEXT'.")


class BasePromptEncoder(nn.Module):
    """The tensors of one prompt (PEFT class of the same name): what is trained, and how the prompt is computed from it.

    A file holds the *finished* prompt (PEFT's format); a network that computes it is not in the file. So a prompt that was read
    is a plain table, and as a table it goes on learning.

    Args:
        config: with all sizes filled in.
        word_embeddings: the base's input embeddings, for prompts that begin with words.
        given: the tensors of the adapter's file, by their names in it.
    """

    frozen: ClassVar[tuple[str, ...]] = ()                     # parameters that never train

    def __init__(self, config: PromptLearningConfig, word_embeddings: nn.Module | None = None, *, given: Mapping[str, Tensor] | None = None):
        super().__init__()
        self.is_table = given is not None or config.inference_mode

    def forward(self, indices: Tensor, task_ids: Tensor | None = None) -> Tensor:
        """The rows ``indices`` ``(batch, n)`` of the prompt: ``(batch, n, dim)``, float32."""
        return self.embedding(indices)

    def train_only(self, on: bool) -> None:
        """Say whether the prompt learns."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(on and name.partition(".")[0] not in self.frozen)

    @torch.no_grad()
    def to_file(self) -> Tensors:
        """The tensors by their names in the file; the finished prompt as it is without dropout."""
        training, weight = self.training, next(self.parameters())
        self.eval()
        prompt = self(torch.arange(self.rows, device=weight.device).unsqueeze(0))[0]
        self.train(training)
        return {PROMPT: prompt}

    @property
    def rows(self) -> int:
        return self.embedding.num_embeddings


class PromptMethod(ABC):
    """One method of prompt learning. Stateless; what it trains is in the encoder that it makes."""

    title: ClassVar[str]                   # plain words for a card
    help: ClassVar[str]                    # good for … / cannot …
    config: ClassVar[type[PromptLearningConfig]]
    is_cache: ClassVar[bool] = False       # the prompt is keys and values of every layer, not embeddings
    in_decoder: ClassVar[bool] = False     # of an encoder-decoder's rows, the second half stands before the decoder's input
    own_loss: ClassVar[bool] = False       # `loss` takes the place of the model's

    @abstractmethod
    def encoder(self, cfg: Any, words: nn.Module | None, given: Mapping[str, Tensor] | None = None, **start: Any) -> BasePromptEncoder:
        """A prompt: from a file if ``given``, otherwise new, drawing from the global random stream what PEFT draws.

        ``start`` has what the config asks for and a method cannot fetch by itself: ``text``, the token ids of the text to begin
        with; ``source``, the tensors of the adapter's file to begin with.
        """

    def width(self, cfg: Any) -> int:
        """Numbers in one row of the finished prompt."""
        return cfg.token_dim

    def shapes(self, cfg: Any) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors in the file."""
        return {PROMPT: (cfg.total_tokens, self.width(cfg))}

    def loss(self, cfg: Any, logits: Tensor, labels: Tensor, input_types: Tensor | None) -> Tensor:
        """The method's own loss of logits ``(batch, n + T, vocabulary)`` for labels ``(batch, T)``.

        ``input_types`` ``(batch, T)`` is the argument ``input_type_mask`` of the call, which no model knows.
        """
        raise NotImplementedError


class CacheMethod(PromptMethod):
    """A prompt of keys and values: a row holds, for every layer, one key and one value of all heads."""

    is_cache = True

    def width(self, cfg: Any) -> int:
        return cfg.num_layers * 2 * cfg.token_dim

    def shapes(self, cfg: Any) -> dict[str, tuple[int, ...]]:
        return {PROMPT: (cfg.num_virtual_tokens, self.width(cfg))}


def table(rows: Tensor) -> nn.Embedding:
    """An embedding with these rows, float32."""
    return nn.Embedding(*rows.shape, _weight=rows.detach().clone().float())


def first_words(config: Any) -> list[int]:
    """The tokens of ``prompt_tuning_init_text``."""
    from transformers import AutoTokenizer

    settings = {k: v for k, v in (config.tokenizer_kwargs or {}).items() if k != "trust_remote_code"}          # an adapter never brings programs
    return AutoTokenizer.from_pretrained(config.tokenizer_name_or_path, **settings)(config.prompt_tuning_init_text)["input_ids"]


@torch.no_grad()
def word_rows(words: nn.Module, ids: Sequence[int] | Tensor, rows: int) -> Tensor:
    """The base's embeddings ``(rows, dim)`` of these tokens, repeated or cut to that number. Raises `ValueError` if there are none."""
    if not len(ids):
        raise ValueError("The text to begin with has no tokens: write a longer `prompt_tuning_init_text`.")
    ids = torch.as_tensor(ids, device=next(words.parameters()).device)
    return words(ids[torch.arange(rows, device=ids.device) % len(ids)])
