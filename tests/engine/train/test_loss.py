"""The lean loss is the plain loss: against transformers' own, against one big batch, and without cross-talk between rows."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GraniteConfig, Qwen3Config

from engine import LoraConfig, get_peft_model
from engine.data.render import IGNORED, Rendered
from engine.train import loss as loss_module
from engine.train.batching import collate, micro_batches
from engine.train.loss import Objective
from tests.support.tiny import make_model

LENGTHS = [5, 60, 17, 33, 9, 48, 12]
COMMON = dict(vocab_size=384, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              head_dim=12, initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def family(name):
    torch.manual_seed(0)
    if name == "llama":
        return make_model()
    config = {"qwen3": lambda: Qwen3Config(**COMMON), "gemma2": lambda: Gemma2Config(**COMMON, sliding_window=8, final_logit_softcapping=3.0),
              "granite": lambda: GraniteConfig(**COMMON, logits_scaling=4.0),
              "gpt2": lambda: GPT2Config(vocab_size=384, n_embd=48, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)}
    return AutoModelForCausalLM.from_config(config[name]()).eval()


def rows(lengths=LENGTHS):
    draw = torch.Generator().manual_seed(1)
    made = []
    for n in lengths:
        ids = torch.randint(3, 384, (n,), generator=draw).tolist()
        made.append(Rendered(ids, [IGNORED if t < n // 3 else i for t, i in enumerate(ids)], []))
    return made


def student(name="llama", **settings):
    model = get_peft_model(family(name), LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}))
    torch.manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(std=0.1)
    return model


def gradients(model):
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    model.zero_grad(set_to_none=True)
    return found


def plain(model, row):
    """transformers' own loss of one row alone: (mean error of a learned token, gradient)."""
    out = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.labels]), use_cache=False)
    out.loss.backward()
    return float(out.loss.detach()), gradients(model)


@pytest.mark.parametrize("name, lean", [("llama", True), ("qwen3", True), ("gpt2", True), ("gemma2", False), ("granite", False)])
def test_loss_and_gradient_equal_transformers_row_by_row(name, lean):
    """One padded batch of ragged rows equals each row run alone by transformers itself: no cross-talk, no padding, right normalisation."""
    model, made = student(name), rows()
    objective = Objective(model)
    assert objective.lean is lean
    learned = sum(row.learned for row in made)
    alone = [plain(model, row) for row in made]
    expected = sum(error * row.learned for (error, _), row in zip(alone, made))
    batch = collate(made)
    assert objective.backward(batch, learned) == pytest.approx(expected, rel=1e-5)
    together = sum(g * row.learned / learned for (_, g), row in zip(alone, made))
    assert float((gradients(model) - together).norm() / together.norm()) < 1e-5
    with torch.no_grad():
        assert objective.error(batch) == pytest.approx(expected, rel=1e-5)
    for row, (error, g) in zip(made, alone):                   # and every single row
        assert objective.backward(collate([row]), row.learned) / row.learned == pytest.approx(error, rel=1e-5)
        assert float((gradients(model) - g).norm() / g.norm()) < 1e-5


def test_what_stands_in_the_padding_or_in_another_row_is_never_heard():
    model, made = student(), rows([40, 7])
    objective = Objective(model)
    first = objective.backward(collate(made, pad=0), 10), gradients(model)
    other = objective.backward(collate(made, pad=77), 10), gradients(model)
    assert first[0] == other[0] and torch.equal(first[1], other[1])
    changed = [Rendered([5] * 40, [IGNORED] * 40, []), made[1]]
    assert objective.backward(collate(changed), 10) == pytest.approx(objective.backward(collate(made[1:]), 10), rel=1e-6)


@pytest.mark.parametrize("budget", [1, 100, 10_000])
def test_accumulation_equals_one_big_batch(budget):
    model, made = student(), rows()
    objective, learned = Objective(model), sum(row.learned for row in made)
    whole = objective.backward(collate(made), learned), gradients(model)
    total = sum(objective.backward(collate([made[i] for i in part]), learned) for part in micro_batches(LENGTHS, budget))
    parts = gradients(model)
    assert total == pytest.approx(whole[0], rel=1e-6) and float((parts - whole[1]).norm() / whole[1].norm()) < 1e-5


def test_the_whole_logits_are_never_held(monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", 16)
    model, seen = student(), []
    objective = Objective(model)
    model.get_base_model().lm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    objective.backward(collate(rows()), 10)
    assert seen and max(shape[0] for shape in seen) <= 16 and sum(shape[0] for shape in seen) == sum(r.learned for r in rows())


def test_an_adapter_on_the_head_gets_its_gradient(monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", 8)
    torch.manual_seed(0)
    model = get_peft_model(make_model(tied=False), LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(std=0.1)
    row = rows([30])[0]
    error, expected = plain(model, row)
    assert Objective(model).backward(collate([row]), row.learned) / row.learned == pytest.approx(error, rel=1e-5)
    assert float((gradients(model) - expected).norm() / expected.norm()) < 1e-5
