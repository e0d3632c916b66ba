"""Multitask prompt tuning: ``P ∘ (cols_t · rows_t)``, one prompt for all tasks, turned to task ``t`` by a low-rank mask.

Wang et al. 2023 (arXiv 2303.02861). PEFT: ``MultitaskPromptTuningConfig``, ``MultitaskPromptEmbedding``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine.law import Tensors
from engine.methods.prompt import PROMPT, BasePromptEncoder, PromptMethod, WordPromptConfig, table, word_rows
from engine.specs.fields import knob

COLS, ROWS = "prefix_task_cols", "prefix_task_rows"
FROM_SOURCE = ("AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED")


@dataclass
class MultitaskPromptTuningConfig(WordPromptConfig):
    """Settings of multitask prompt tuning (PEFT class of the same name)."""

    peft_type: ClassVar[str] = "MULTITASK_PROMPT_TUNING"

    starts: ClassVar[tuple[str, ...]] = ("RANDOM", "TEXT", *FROM_SOURCE)

    prompt_tuning_init: str = knob("RANDOM", label="Begins with", term="prompt_tuning_init", choices=("RANDOM", "TEXT", *FROM_SOURCE),
                                   help="Noise, a text of yours, or what another adapter of this kind has learned.")
    prompt_tuning_init_state_dict_path: str | None = knob(None, label="Adapter to begin with", term="prompt_tuning_init_state_dict_path",
                                                          advanced=True, help="Its file adapter_model.safetensors.")
    prompt_tuning_init_task: int = knob(0, label="Its task", term="prompt_tuning_init_task", low=0, advanced=True,
                                        help="Which of its tasks to begin with.")
    num_ranks: int = knob(1, label="Rank", term="num_ranks", low=1, advanced=True, help="How finely each task may turn the prompt.")
    num_tasks: int = knob(1, label="Tasks", term="num_tasks", low=1, help="How many tasks learn side by side.")


class MultitaskPromptEmbedding(BasePromptEncoder):
    """The common rows and the masks of the tasks, ``(tasks, n, rank)`` and ``(tasks, rank, dim)``."""

    def __init__(self, config: MultitaskPromptTuningConfig, word_embeddings: nn.Module | None = None, *, text: Sequence[int] = (),
                 source: Mapping[str, Tensor] | None = None, given: Mapping[str, Tensor] | None = None):
        super().__init__(config, word_embeddings, given=given)
        shapes = METHOD.shapes(config)
        if given is not None:
            self.embedding, *masks = table(given[PROMPT]), *(given[name].clone().float() for name in (COLS, ROWS))
        else:
            self.embedding = nn.Embedding(*shapes[PROMPT])
            if config.prompt_tuning_init == "TEXT" and not config.inference_mode:
                self.embedding = table(word_rows(word_embeddings, text, config.total_tokens))
            masks = [torch.normal(0.0, 0.02, shapes[name]) for name in (COLS, ROWS)]
        self.prefix_task_cols, self.prefix_task_rows = map(nn.Parameter, masks)
        if source is not None:
            self._begin_with(source, config)

    @torch.no_grad()
    def _begin_with(self, source: Mapping[str, Tensor], config: MultitaskPromptTuningConfig) -> None:
        found = {PROMPT: source[PROMPT]}
        if config.prompt_tuning_init != "ONLY_SOURCE_SHARED":
            for name in (COLS, ROWS):
                found[name] = (source[name].mean(0, keepdim=True) if config.prompt_tuning_init == "AVERAGE_SOURCE_TASKS"
                               else source[name][config.prompt_tuning_init_task].unsqueeze(0))
        own = {PROMPT: self.embedding.weight, COLS: self.prefix_task_cols, ROWS: self.prefix_task_rows}
        for name, tensor in found.items():
            if tensor.shape != own[name].shape:
                raise ValueError(f"The adapter to begin with has {name} of the sizes {tuple(tensor.shape)}, this one needs "
                                 f"{tuple(own[name].shape)}; one task of the other becomes one task here (num_tasks=1).")
            own[name].copy_(tensor)

    def forward(self, indices: Tensor, task_ids: Tensor | None = None) -> Tensor:
        if task_ids is None:
            raise ValueError("task_ids cannot be None: say for every row of the batch to which task it belongs.")
        tasks = torch.as_tensor(task_ids, device=indices.device)
        return self.embedding(indices) * (self.prefix_task_cols.index_select(0, tasks) @ self.prefix_task_rows.index_select(0, tasks))

    def to_file(self) -> Tensors:
        return {PROMPT: self.embedding.weight, COLS: self.prefix_task_cols, ROWS: self.prefix_task_rows}


class MultitaskPromptTuning(PromptMethod):
    """The law: a table, and a low-rank mask for each task."""

    title = "Multitask prompt tuning"
    help = "One prompt that several tasks share and turn to their own use. Needs to be told the task of every example."
    config = MultitaskPromptTuningConfig
    in_decoder = True

    def encoder(self, cfg: Any, words: nn.Module | None, given: Mapping[str, Tensor] | None = None, **start: Any) -> BasePromptEncoder:
        return MultitaskPromptEmbedding(cfg, words, given=given, **start)

    def shapes(self, cfg: Any) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(cfg), COLS: (cfg.num_tasks, cfg.total_tokens, cfg.num_ranks), ROWS: (cfg.num_tasks, cfg.num_ranks, cfg.token_dim)}


METHOD = MultitaskPromptTuning()
