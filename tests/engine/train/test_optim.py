"""Speed rules and an AdamW whose state travels as plain tensors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidSpec
from engine.train.optim import Optimizer, learning_rate, speed_at


def test_the_rule_gives_the_documented_speeds():
    alpha32 = {"r": 16, "lora_alpha": 32}
    assert learning_rate("LORA", alpha32, 4096) == pytest.approx(2.9e-4, rel=0.02)      # Llama 8 B: the source's own example is 2.8e-4
    assert learning_rate("LORA", alpha32, 2000) == pytest.approx(5e-4)
    assert learning_rate("LORA", {"r": 64, "lora_alpha": 32}, 2000) == learning_rate("LORA", {"r": 8, "lora_alpha": 32}, 2000)
    assert learning_rate("LORA", {"r": 16, "lora_alpha": 8}, 2000) == pytest.approx(1e-3)
    assert learning_rate("LORA", {"r": 16, "lora_alpha": 16, "use_rslora": True}, 2000) < 5e-4
    assert learning_rate("LORA", alpha32, 32) == 2e-3           # never faster than this


@given(st.integers(1, 500), st.floats(0, 0.5))
def test_speed_rises_then_falls_to_a_tenth(steps, warmup):
    factors = [speed_at(k, steps, warmup) for k in range(steps)]
    rise = max(1, round(steps * warmup))
    assert all(0 < f <= 1 for f in factors) and factors[min(rise, steps) - 1] == pytest.approx(min(rise, steps) / rise)
    assert all(a < b for a, b in zip(factors[:rise], factors[1:rise])) and all(a >= b for a, b in zip(factors[rise:], factors[rise + 1:]))
    assert factors[-1] >= 0.1 or steps <= rise


def weights(rows=4, columns=3):
    torch.manual_seed(0)
    return {name: torch.nn.Parameter(torch.randn(rows, columns)) for name in ("a.lora_A.default.weight", "b.lora_B.default.weight")}


def walk(optimizer, steps):
    for k in steps:
        for i, p in enumerate(optimizer.parameters.values()):
            p.grad = torch.full_like(p, math.sin(k + i)) + torch.linspace(-1, 1, p.numel()).view_as(p) * 0.1
        optimizer.step(1.0 / (k + 1))


@pytest.mark.parametrize("kind", ["adamw", "adamw-8bit"])
@pytest.mark.parametrize("size", [(4, 3), (64, 128)], ids=str)            # small tensors are never packed
def test_state_saved_and_restored_goes_on_bit_by_bit(kind, size):
    whole = Optimizer(weights(*size), 0.1, 0.01, kind)
    walk(whole, range(10))
    first = Optimizer(weights(*size), 0.1, 0.01, kind)
    walk(first, range(4))
    second = Optimizer({n: torch.nn.Parameter(p.detach().clone()) for n, p in first.parameters.items()}, 0.1, 0.01, kind)
    second.restore(first.state())
    walk(second, range(4, 10))
    assert all(torch.equal(whole.parameters[n], second.parameters[n]) for n in whole.parameters)
    with pytest.raises(KeyError):
        second.restore({"unknown/exp_avg": torch.zeros(1)})


def test_eight_bits_go_nearly_the_same_way_with_a_quarter_of_the_memory():
    ways = {kind: Optimizer(weights(64, 128), 0.01, 0.01, kind) for kind in ("adamw", "adamw-8bit")}
    begun = weights(64, 128)
    for optimizer in ways.values():
        walk(optimizer, range(10))
    for name, p in ways["adamw"].parameters.items():
        other = ways["adamw-8bit"].parameters[name]
        assert (other - p).norm() < 0.05 * (p - begun[name]).norm()
    sizes = {kind: sum(t.numel() * t.element_size() for t in optimizer.state().values()) for kind, optimizer in ways.items()}
    assert sizes["adamw-8bit"] < 0.27 * sizes["adamw"]


def test_a_paged_one_needs_a_card():
    with pytest.raises(InvalidSpec, match="graphics card"):
        Optimizer(weights(), 0.1, 0.0, "adamw-paged")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA graphics card")
def test_a_paged_one_goes_on_bit_by_bit_on_a_card():
    def on_card(parameters):
        return {name: torch.nn.Parameter(p.detach().cuda()) for name, p in parameters.items()}

    whole, first = (Optimizer(on_card(weights(512, 512)), 0.1, 0.01, "adamw-paged") for _ in range(2))
    walk(whole, range(10)), walk(first, range(4))
    second = Optimizer(on_card(first.parameters), 0.1, 0.01, "adamw-paged")
    second.restore({name: value.detach().cpu().clone() for name, value in first.state().items()})
    walk(second, range(4, 10))
    assert all(torch.equal(whole.parameters[n], second.parameters[n]) for n in whole.parameters)


def test_gradients_that_are_no_numbers_change_nothing():
    optimizer = Optimizer(weights(), 0.1, 0.0)
    before = {n: p.detach().clone() for n, p in optimizer.parameters.items()}
    for p in optimizer.parameters.values():
        p.grad = torch.full_like(p, float("nan"))
    assert not math.isfinite(optimizer.step(1.0))
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in optimizer.parameters.items())
