"""LoRA+, LoRA-FA and the Riemannian optimizer by dense arithmetic (their steps against PEFT's are in `tests/parity/test_lora_optim.py`)."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

import engine
from engine.train.lora_optim import (
    LoraFAOptimizer, create_lorafa_optimizer, create_loraplus_optimizer, create_riemannian_optimizer, precondition, projected)


def wrapped(**settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 5), nn.LayerNorm(5))
    return engine.get_peft_model(model, engine.LoraConfig(**{"r": 2, "target_modules": ["0", "1"], "init_lora_weights": False, **settings}))


def test_loraplus_groups_by_what_a_parameter_is():
    model = wrapped(use_dora=True)
    groups = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=4.0, loraplus_weight_decay=0.1).param_groups
    names = {id(p): name.removeprefix("base_model.model.") for name, p in model.named_parameters()}
    found = [({names[id(p)] for p in g["params"]}, g["lr"], g["weight_decay"]) for g in groups]
    assert found == [({"1.lora_A.default.weight"}, 1e-3, 0.1), ({"0.lora_embedding_A.default", "0.lora_embedding_B.default"}, 1e-6, 0.1),
                     ({"1.lora_B.default.weight", "0.lora_magnitude_vector.default.weight", "1.lora_magnitude_vector.default.weight"}, 4e-3, 0.1),
                     (set(), 4e-3, 0.0)]


def test_an_eight_bit_optimizer_keeps_embeddings_exact(monkeypatch):
    kept = []

    class AdamW8bit(torch.optim.AdamW):
        __module__ = "stand_in.optim"

    manager = types.SimpleNamespace(register_module_override=lambda module, name, how: kept.append((type(module), name, how)))
    package = types.SimpleNamespace(optim=types.SimpleNamespace(GlobalOptimManager=types.SimpleNamespace(get_instance=lambda: manager)))
    monkeypatch.setitem(sys.modules, "stand_in", package)
    create_loraplus_optimizer(wrapped(), AdamW8bit, lr=1e-3, loraplus_lr_ratio=4.0)
    assert kept == [(nn.Embedding, "weight", {"optim_bits": 32})]


def test_lorafa_turns_the_gradient_so_that_the_product_follows_full_training():
    """B's new gradient times A is the orthogonal projection of the full gradient on A's rows, over the scale."""
    torch.manual_seed(1)
    A, full, scale = torch.randn(3, 7), torch.randn(5, 7), 1.7
    g = projected(scale * full @ A.T, A, scale)
    torch.testing.assert_close(scale * g @ A, full @ torch.linalg.pinv(A) @ A, atol=1e-4, rtol=1e-4)


def test_lorafa_leaves_a_alone_and_trains_embeddings_too():
    model = wrapped()
    optimizer = create_lorafa_optimizer(model, 2, 8, lr=0.1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for _ in range(2):
        model(torch.arange(6)).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"0.lora_embedding_A.default", "0.lora_embedding_B.default", "1.lora_B.default.weight"}
    assert not model.adapted["1"].tensors("default")["lora_A.weight"].requires_grad


def test_lorafa_state_can_be_saved_and_taken_back():
    torch.manual_seed(2)
    A, B = torch.randn(2, 4), nn.Parameter(torch.randn(3, 2))

    def run(optimizer, steps):
        for _ in range(steps):
            B.grad = B.detach() * 2
            optimizer.step()

    first = LoraFAOptimizer([B], 0.1, partners={B: (A, 2.0)})
    run(first, 2)
    middle, kept = first.state_dict(), B.detach().clone()
    middle = {**middle, "state": {k: {n: v.clone() if torch.is_tensor(v) else v for n, v in s.items()} for k, s in middle["state"].items()}}
    run(first, 2)
    end = B.detach().clone()
    with torch.no_grad():
        B.copy_(kept)
    second = LoraFAOptimizer([B], 0.1, partners={B: (A, 2.0)})
    second.load_state_dict(middle)
    run(second, 2)
    assert torch.equal(B, end)


@pytest.mark.parametrize(("settings", "says"), [({"lr": -1.0}, "learning rate"), ({"betas": (1.0, 0.9)}, "beta"), ({"eps": -1.0}, "epsilon")])
def test_lorafa_refuses_impossible_settings(settings, says):
    with pytest.raises(ValueError, match=says):
        LoraFAOptimizer([nn.Parameter(torch.ones(1))], **settings)


def test_lorafa_refuses_a_contradiction():
    with pytest.raises(ValueError, match="set differently"):
        create_lorafa_optimizer(wrapped(), 2, 8, lr=0.1, use_rslora=True)
    with pytest.warns(FutureWarning, match="deprecated"):
        create_lorafa_optimizer(wrapped(use_rslora=True), 2, 8, lr=0.1, use_rslora=True)


def test_riemannian_steps_do_not_depend_on_how_the_product_is_split():
    """What the preconditioner is for: (A, B) and (S⁻¹A, B·S) take the same step of B·A, to first order."""
    torch.manual_seed(3)
    A0, B0, full = torch.randn(2, 6, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    steps = []
    for S in (torch.eye(2, dtype=torch.float64), torch.tensor([[3.0, 1.0], [0.0, 0.2]], dtype=torch.float64)):
        A, B = nn.Parameter(torch.linalg.inv(S) @ A0), nn.Parameter(B0 @ S)
        A.grad, B.grad = B.detach().T @ full, full @ A.detach().T
        precondition(A, B, 0.0)
        steps.append(B.detach() @ A.grad + B.grad @ A.detach())
    torch.testing.assert_close(steps[0], steps[1])


def test_riemannian_refuses_what_would_go_wrong():
    model = wrapped()
    with pytest.raises(TypeError, match="subclass of torch.optim.Optimizer"):
        create_riemannian_optimizer(model, "AdamW", lr=0.1)
    with pytest.raises(ValueError, match="requires a closure"):
        create_riemannian_optimizer(model, torch.optim.LBFGS, lr=0.1)
    with pytest.raises(ValueError, match="does not support closures"):
        create_riemannian_optimizer(model, torch.optim.SGD, lr=0.1).step(lambda: 0)
    model.set_requires_grad("default", False)
    with pytest.raises(ValueError, match="did not find any trainable"):
        create_riemannian_optimizer(model, torch.optim.SGD, lr=0.1)
