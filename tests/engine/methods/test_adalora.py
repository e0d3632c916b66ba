"""AdaLoRA: its law, and the schedule that takes ranks away, on tensors whose importance is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import AdaLoraConfig, PeftModel, get_peft_model
from engine.methods.adalora import METHOD, RankSchedule, orthogonality
from engine.law import Site
from tests.support.one import one


def layers(ranks: dict[str, int]) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"lora_A": lambda r: (r, 6), "lora_E": lambda r: (r, 1), "lora_B": lambda r: (4, r)}
    return {path: {name: torch.randn(shape(r), generator=generator).requires_grad_() for name, shape in shapes.items()} for path, r in ranks.items()}


def ranks(schedule: RankSchedule) -> int:
    return sum(int(p["lora_E"].count_nonzero()) for p in schedule.layers.values())


def step(schedule: RankSchedule, number: int) -> None:
    """One step of a loss that asks every entry to be one."""
    for p in schedule.layers.values():
        for tensor in p.values():
            tensor.grad = (tensor.detach() - 1) / tensor.numel()
    schedule.update_and_allocate(number)


@pytest.mark.parametrize("kind", [lambda: nn.Linear(12, 8), lambda: nn.Conv2d(3, 8, (2, 2)), lambda: nn.Conv1d(8, 8, 3, groups=2)])
def test_the_law_is_a_decomposition_scaled_by_alpha_over_the_first_rank(kind):
    peft, adapted = one(kind(), AdaLoraConfig(init_r=3, total_step=9, lora_alpha=6))
    p, cfg = adapted.tensors("a0"), adapted.tenants["a0"].config
    expected = 6 / (3 + 1e-5) * p["lora_B"] @ torch.diag(p["lora_E"].flatten()) @ p["lora_A"]
    torch.testing.assert_close(METHOD.delta(p, cfg, adapted.site), expected)
    assert METHOD.scale(AdaLoraConfig(init_r=3, total_step=9, lora_alpha=0), adapted.site) == pytest.approx(1, abs=1e-5)


def test_the_number_of_ranks_falls_by_the_cubic_curve_and_stays():
    cfg = AdaLoraConfig(init_r=8, target_r=2, tinit=2, tfinal=3, deltaT=2, total_step=12)
    schedule = RankSchedule(cfg, layers({"a": 8, "b": 8}))
    counts = []
    for number in range(13):
        step(schedule, number)
        counts.append(ranks(schedule))
    curve = {n: int(12 * (1 - (n - 2) / 7) ** 3 + 4) for n in range(3, 10)}
    assert counts[:4] == [16, 16, 16, 16]  # warm-up; then every second step, and the last one whatever its number
    assert [counts[n] for n in (4, 6, 8)] == [curve[n] for n in (4, 6, 8)]
    assert counts[9:] == [4, 4, 4, 4]
    assert sum(sum(left) for left in cfg.rank_pattern.values()) == 4
    assert set(cfg.rank_pattern) == {"a.lora_E", "b.lora_E"}


def test_a_rank_can_come_back_while_the_number_falls_and_not_after():
    cfg = AdaLoraConfig(init_r=4, target_r=2, tfinal=2, total_step=8)
    schedule = RankSchedule(cfg, layers({"a": 4}))
    for number in range(7):
        step(schedule, number)
    with torch.no_grad():
        schedule.layers["a"]["lora_E"].fill_(1.0)              # an optimizer's momentum does this
    step(schedule, 7)
    assert ranks(schedule) == 2
    assert schedule.layers["a"]["lora_E"].flatten().bool().tolist() == cfg.rank_pattern["a.lora_E"]


def test_a_layer_that_matters_keeps_its_ranks():
    cfg = AdaLoraConfig(init_r=4, target_r=2, tinit=1, total_step=6)
    schedule = RankSchedule(cfg, layers({"idle": 4, "busy": 4}))
    for number in range(7):
        for path, p in schedule.layers.items():
            for tensor in p.values():
                tensor.grad = torch.full_like(tensor, (number % 2 + 0.5) * (1e-3 if path == "idle" else 1.0))
        schedule.update_and_allocate(number)
    assert cfg.rank_pattern == {"idle.lora_E": [False] * 4, "busy.lora_E": [True] * 4}


def test_ties_and_a_target_above_the_start_keep_the_budget():
    tied = RankSchedule(AdaLoraConfig(init_r=4, target_r=2, total_step=4), layers({"a": 4, "b": 4}))
    for number in range(5):
        tied.update_and_allocate(number)   # no gradient anywhere: PEFT would take every rank away
    assert ranks(tied) == 4
    generous = RankSchedule(AdaLoraConfig(init_r=4, target_r=6, total_step=4), layers({"a": 4}))
    for number in range(5):
        step(generous, number)             # PEFT fails here
    assert ranks(generous) == 4


def test_only_the_ranks_that_are_left_are_written_and_read(tmp_path):
    torch.manual_seed(0)
    cfg = AdaLoraConfig(init_r=4, target_r=2, total_step=4, target_modules=["0", "1"], init_lora_weights=False)
    peft = get_peft_model(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4)), cfg)
    schedule = RankSchedule(cfg, {path: layer.tensors("default") for path, layer in peft.adapted.items()})
    for number in range(5):
        peft(torch.randn(3, 6)).pow(2).sum().backward()
        schedule.update_and_allocate(number)
    x = torch.randn(5, 6)
    expected = peft.eval()(x)
    peft.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(peft.unload(), tmp_path)
    assert again.load_report.complete
    assert sum(len(layer.tensors("default")["lora_E"]) for layer in again.adapted.values()) == 4
    torch.testing.assert_close(again(x), expected)
    again.save_pretrained(tmp_path / "again")                  # a second time, nothing is left to take away
    third = PeftModel.from_pretrained(again.unload(), tmp_path / "again")
    torch.testing.assert_close(third(x), expected)


def test_a_layer_without_a_rank_left_is_silent():
    cfg = AdaLoraConfig(init_r=4, total_step=4, rank_pattern={"x.lora_E": [False] * 4})
    site = Site("x", "linear", 6, 5)
    p = {name: torch.empty(spec.shape) for name, spec in METHOD.tensors(cfg, site).items()}
    assert p["lora_A"].shape == (0, 5)
    assert torch.equal(METHOD.delta(p, cfg, site), torch.zeros(6, 5))


def test_orthogonality_is_the_mean_distance_of_the_gram_matrices_from_one():
    Q = torch.linalg.qr(torch.randn(6, 6))[0]
    p = {"lora_A": (2 * Q[:3]).requires_grad_(), "lora_E": torch.ones(3, 1), "lora_B": Q[:, :3]}
    loss = orthogonality([p, p])           # A·Aᵀ = 4·I, three off by 3 each; Bᵀ·B = I
    torch.testing.assert_close(loss, torch.tensor(3 * 3 ** 0.5 / 2))
    loss.backward()
    assert p["lora_A"].grad.isfinite().all() and p["lora_A"].grad.any()


@pytest.mark.parametrize(("settings", "phrase"), [
    ({"total_step": None}, "`total_step` is None"), ({"total_step": 0}, "`total_step` is None"), ({"use_dora": True}, "does not support DoRA"),
    ({"loftq_config": {"bits": 4}}, "does not support LOFTQ"), ({"orth_reg_weight": -1}, "greater than or equal to 0"),
    ({"init_r": -1}, "`r` should be"),
    ({"tinit": 5, "tfinal": 5}, "budgeting phase"), ({"beta1": 1.0}, "between 0 and 1"), ({"use_rslora": True}, "does not support use_rslora"),
    ({"target_parameters": ["w"]}, "does not support target_parameters"), ({"deltaT": 0}, "deltaT")])
def test_impossible_settings(settings, phrase):
    with pytest.raises(ValueError, match=phrase):
        AdaLoraConfig(**{"total_step": 10, **settings})


def test_a_rank_that_is_not_used_is_said_so():
    with pytest.warns(UserWarning, match="`r` is not used in AdaLora"):
        AdaLoraConfig(r=4, total_step=10)
