"""The lean loss is the plain loss: cut as you like, long or short, with a head that learns. Family by family: `test_families`."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine import LoraConfig, get_peft_model
from engine.data.render import IGNORED, Rendered
from engine.train import attention
from engine.train import loss as loss_module
from engine.train.batching import collate, micro_batches
from engine.train.loss import Objective
from tests.support.rows import random_rows
from tests.support.tiny import make_model

LENGTHS = [5, 60, 17, 33, 9, 48, 12]


def rows(lengths=LENGTHS, alike=0):
    return random_rows(lengths, alike)


def student(**settings):
    model = get_peft_model(make_model(), LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}))
    torch.manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(std=0.1)
    return model


def gradients(model):
    found = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters() if p.requires_grad])
    model.zero_grad(set_to_none=True)
    return found


def plain(model, row):
    """transformers' own loss of one row alone: (mean error of a learned token, gradient)."""
    out = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.labels]), use_cache=False)
    out.loss.backward()
    return float(out.loss.detach()), gradients(model)


@pytest.mark.parametrize("alpha", [8, 32])
def test_what_sixteen_bits_round_off_keeps_no_rows_apart(starter_folder, alpha):
    """Thirty layers of rounding are more than two ways to compute differ by: the trial goes by the way that rounds alike."""
    base = AutoModelForCausalLM.from_pretrained(starter_folder, dtype=torch.bfloat16)
    torch.manual_seed(0)
    assert Objective(get_peft_model(base, LoraConfig(r=8, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM"))).side_by_side


@pytest.mark.parametrize("alike", [0, 8])
def test_however_attention_is_cut_and_whatever_it_keeps_the_result_is_the_same(monkeypatch, alike):
    model, made = student(), rows([40, 30, 20, 9, 11], alike)
    objective = Objective(model)

    def result(**settings):
        for name, value in settings.items():
            monkeypatch.setattr(attention, name, value)
        batch = objective.collate(made)
        return len(batch.layout.tiles), objective.backward(batch, 10), gradients(model)

    tiles, error, gradient = result()
    assert tiles == (2 if alike else 1)
    for settings in ({"TILE": 16}, {"TILE": 16, "KEPT": 12}, {"TILE": 1}, {"_side_by_side": lambda q, k, v, layout, scaling, dropout:
                                                                           attention._row_by_row(q, k, v, layout, scaling)}):
        others, same, alike_too = result(**settings)
        assert same == pytest.approx(error, rel=1e-6) and float((alike_too - gradient).norm() / gradient.norm()) < 1e-5
        assert others > tiles


def test_the_model_s_own_attention_is_put_back_even_after_an_error(monkeypatch):
    model = student()
    objective, config = Objective(model), model.get_base_model().config
    assert config._attn_implementation == "sdpa"
    monkeypatch.setattr(attention, "_side_by_side", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        objective.backward(objective.collate(rows()), 10)
    assert config._attn_implementation == "sdpa" and attention._layout is None


def test_what_stands_in_the_padding_or_in_another_row_is_never_heard():
    model, made = student(), rows([40, 7])
    objective = Objective(model)
    for share in (False, True):
        first = objective.backward(collate(made, pad=0, share=share), 10), gradients(model)
        other = objective.backward(collate(made, pad=77, share=share), 10), gradients(model)
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
    monkeypatch.setattr(loss_module, "LOGITS", 16 * 384 * 8)
    model, seen = student(), []
    objective = Objective(model)
    model.get_base_model().lm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape) if out.shape[-1] == 384 else None)
    objective.backward(collate(rows()), 10)
    assert seen and max(shape[0] for shape in seen) <= 16 and sum(shape[0] for shape in seen) == sum(r.learned for r in rows())


@pytest.mark.parametrize("hidden, vocabulary, count, together", [
    (64, 384, 400, 200), (2048, 32_000, 510, 255), (4096, 128_256, 300, 150), (576, 49_152, 480, 120), (64, 1_000_000, 20, 7), (64, 384, 0, 1)])
def test_as_many_go_through_the_head_together_as_is_quick_and_takes_little(monkeypatch, hidden, vocabulary, count, together):
    """Never more than its rate gains from, always about alike, and no more bytes than are allowed or than a quarter of the head's weight."""
    objective = Objective(make_model())
    monkeypatch.setattr(objective.config, "vocab_size", vocabulary)
    assert objective._chunk(torch.empty(count, hidden)) == together


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_errors_and_their_gradient_are_those_of_cross_entropy(monkeypatch, dtype, tolerance):
    monkeypatch.setattr(loss_module, "CACHED", 3 * 4 * 384)                       # three rows in one go, of ten
    torch.manual_seed(0)
    logits, targets, wrong = (torch.randn(10, 384) * 20).to(dtype), torch.randint(384, (10,)), torch.empty(10, 384, dtype=dtype)
    logits[3, targets[3]] = 300                                                 # sure of the right one
    logits[4, (targets[4] + 1) % 384] = 300                                     # sure of a wrong one: the right one's chance is 0 in float32
    plainly = logits.float().requires_grad_()
    expected = torch.nn.functional.cross_entropy(plainly, targets, reduction="none")
    (expected.sum() / 7).backward()
    found = Objective(make_model())._errors(logits, targets, wrong, 1 / 7)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(wrong.float(), plainly.grad, rtol=tolerance, atol=1e-7)


def test_an_adapter_on_the_head_gets_its_gradient(monkeypatch):
    monkeypatch.setattr(loss_module, "LOGITS", 8 * 384 * 8)
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
