"""What silently goes wrong in training, on every family of models that we claim: rows that hear one another, masks in which nothing is
learned, a mean of means, gradients that do not reach the lowest adapter. Whether rows may stand side by side is the engine's own finding."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

from engine import LoraConfig, get_peft_model
from engine.data.render import IGNORED, Rendered, prepare_tokenizer, render
from engine.data.rows import Row
from engine.train import attention
from engine.train.batching import micro_batches
from engine.train.loss import Objective
from tests.support.families import family
from tests.support.rows import random_rows
from tests.support.tiny import TEMPLATE, make_tokenizer

SIDE_BY_SIDE = {"Llama": True, "Qwen2": True, "Qwen3": True, "Gemma3Text": True, "Mistral": True, "Phi": True, "Phi3": True, "GPT2": True,
                "OPT": True, "Mixtral": True, "Qwen3Moe": True, "SmolLM3": True, "Granite": True, "Gemma2": False, "Mamba": False,
                "Qwen3_5Text": False}
LENGTHS = [9, 60, 33, 12]
families = pytest.mark.parametrize("name", SIDE_BY_SIDE)


def rows(alike: int = 0, lengths: list[int] = LENGTHS) -> list[Rendered]:
    return random_rows(lengths, alike, 4, 64)


@cache
def _made(name: str):
    targets = ["in_proj", "x_proj"] if name == "Mamba" else "all-linear"      # its other layers are read past, as numbers
    model = family(name, "LMHeadModel" if name == "GPT2" else "ForCausalLM")
    return get_peft_model(model, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)).eval()


def student(name: str):
    """The family's tiny model with an adapter that does something, in eval mode (some have dropout of their own)."""
    return copy.deepcopy(_made(name))


def gradients(model) -> torch.Tensor:
    found = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters() if p.requires_grad])
    model.zero_grad(set_to_none=True)
    return found


def alone(model, row: Rendered) -> tuple[float, torch.Tensor]:
    """One row by itself through the family's own forward and PyTorch's own loss, by hand: (summed error, its gradient)."""
    logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].float()
    chances = torch.log_softmax(logits, dim=-1)
    error = -sum(chances[t, label] for t, label in enumerate(row.labels[1:]) if label != IGNORED)
    error.backward()
    return float(error.detach()), gradients(model)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@families
@pytest.mark.parametrize("alike", [0, 4])
def test_rows_together_are_rows_alone(name, alike):
    """Loss and gradient of ragged rows in one micro-batch equal those of every row alone: nobody hears another, nor any padding."""
    model, made = student(name), rows(alike)
    objective, learned = Objective(model), sum(row.learned for row in made)
    assert (objective.lean, objective.side_by_side) == (True, SIDE_BY_SIDE[name])
    separate = [alone(model, row) for row in made]
    expected, gradient = sum(error for error, _ in separate), sum(g for _, g in separate) / learned
    batch = objective.collate(made)
    assert batch.layout is None or batch.layout.prefix == (2 if alike else 0)      # the shortest row learns its fourth token
    assert objective.backward(batch, learned) == pytest.approx(expected, rel=1e-5) and distance(gradients(model), gradient) < 2e-5
    assert objective.error(batch) == pytest.approx(expected, rel=1e-5)
    for row, (error, g) in zip(made, separate):
        assert objective.backward(objective.collate([row]), 1) == pytest.approx(error, rel=1e-5) and distance(gradients(model), g) < 2e-5


@pytest.mark.parametrize("name", ["Mistral", "Gemma3Text"])
def test_rows_stand_side_by_side_while_they_fit_a_window(name):
    """One token more than the window of 6, and they are padded: laid out, its last token would hear what it does not hear alone."""
    model = student(name)
    objective = Objective(model)
    for lengths, together in (([6, 5, 6], True), ([6, 7, 6], False)):
        made = rows(4, lengths)
        learned, separate = sum(row.learned for row in made), [alone(model, row) for row in made]
        batch, = objective.batches(made, 1000)
        assert objective.shares(made) == together == (batch.layout is not None)
        assert objective.backward(batch, learned) == pytest.approx(sum(error for error, _ in separate), rel=1e-5)
        assert distance(gradients(model), sum(g for _, g in separate) / learned) < 2e-5


@families
def test_a_step_is_the_mean_of_its_tokens_not_of_its_portions(name):
    """However it is cut; and a mean of the rows' means would be another direction, so that this could fail."""
    model, made = student(name), rows()
    objective, learned = Objective(model), sum(row.learned for row in made)
    separate = [alone(model, row) for row in made]
    right = sum(g for _, g in separate) / learned
    wrong = sum(g / row.learned for row, (_, g) in zip(made, separate)) / len(made)
    for budget in (1, 64):
        parts = micro_batches([len(row.ids) for row in made], budget)
        total = sum(objective.backward(objective.collate([made[i] for i in part]), learned) for part in parts)
        assert len(parts) > 1 and total == pytest.approx(sum(error for error, _ in separate), rel=1e-5)
        assert distance(gradients(model), right) < 2e-5 < 1e-2 < distance(wrong, right)


@families
def test_gradients_reach_the_lowest_adapter_and_computing_twice_changes_none(name):
    model, made = student(name), rows()
    learned = sum(row.learned for row in made)
    objective = Objective(model)
    objective.backward(objective.collate(made), learned)
    lowest = [p.grad for path, p in model.named_parameters() if p.requires_grad and (".layers.0." in path or ".h.0." in path)]
    assert lowest and all(g is not None for g in lowest) and all(float(g.abs().max()) > 0 for g in lowest)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    once = gradients(model)
    assert objective.checkpoint()
    model.train()                          # transformers computes twice only while it trains
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    objective.backward(objective.collate(made), learned)
    assert distance(gradients(model), once) < 2e-5


@pytest.mark.parametrize(("name", "harm"), [*((name, "leak") for name, fits in SIDE_BY_SIDE.items() if fits),
                                            *((name, harm) for name in ("Llama", "GPT2", "SmolLM3") for harm in ("positions", "prefix"))])
def test_a_family_that_would_leak_is_found_out(name, harm, monkeypatch):
    """The check that decides is tried with a model that hears its neighbour, counts on through all rows, or does not hear the beginning."""
    if harm == "leak":
        monkeypatch.setattr(attention, "_side_by_side", lambda q, k, v, layout, scaling, dropout: attention._causal(q, k, v, scaling, dropout))
    elif harm == "positions":
        monkeypatch.setattr(attention.Layout, "positions", property(lambda self: torch.arange(self.prefix + sum(self.lengths))[None]))
    else:
        def deaf(q, k, v, layout, scaling, dropout):
            parts = [[*t.split([layout.prefix, *layout.lengths], dim=2)] for t in (q, k, v)]
            return torch.cat([attention._causal(*part, scaling, dropout) for part in zip(*parts)], dim=1)

        monkeypatch.setattr(attention, "_side_by_side", deaf)
    model, made = student(name), rows(4)
    objective, learned = Objective(model), sum(row.learned for row in made)
    assert objective.lean and not objective.side_by_side
    expected = sum(alone(model, row)[0] for row in made)       # and goes on in the ordinary way, unharmed
    assert objective.backward(objective.collate(made), learned) == pytest.approx(expected, rel=1e-5)


TURN = "{% for m in messages %}"
TEMPLATES = {                              # how each family's own template writes turns, in short
    "SmolLM, Qwen2": TEMPLATE,
    "Llama 3": "{{ bos_token }}" + TURN + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
               "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "Llama 2, Mistral": "{{ bos_token }}" + TURN + "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% elif m.role == 'user' %}"
                        "[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "Qwen3": TURN + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
             "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "Gemma": "{{ bos_token }}" + TURN + "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
             "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
             "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "Phi-3": TURN + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
             "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
    "Granite": TURN + "<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n{% endfor %}"
               "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}",
    "GPT-2, OPT, Phi": None,               # none: the engine's plain one
}
SIGNS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>",
         "<|end|>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", ["", "You are the bakery."])
def test_answers_are_learned_whatever_the_template_reports(name, system):
    """transformers' own mask is all zero for each of these templates; ours is the answers with their end, and nothing of the questions."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SIGNS})
    tokenizer.chat_template = TEMPLATES[name]
    tokenizer = prepare_tokenizer(tokenizer)
    messages = [{"role": "user", "content": "When are you open?"}, {"role": "assistant", "content": "Every day."},
                {"role": "user", "content": "What do you sell?"}, {"role": "assistant", "content": "Bread, rolls and cake."}]
    reported = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert sum(reported["assistant_masks"]) == 0
    row = render(Row(tuple(messages), 1), tokenizer, system)
    learned = tokenizer.decode([label for label in row.labels if label != IGNORED])
    assert row.learned > 5 and "Bread, rolls and cake." in learned and ("Every day." in learned) is not row.partly
    assert "open" not in learned and "sell" not in learned and "bakery" not in learned
    assert row.partly is (name == "Qwen3")
    assert row.labels[-1] != IGNORED or row.labels[-2] != IGNORED      # the end of the turn; a line break may follow it
