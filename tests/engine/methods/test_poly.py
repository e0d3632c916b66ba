"""Poly by dense arithmetic: each sample's task mixes the skills, slice by slice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import PolyConfig, get_peft_model
from tests.support.one import One


def test_each_sample_hears_the_mixture_of_its_task():
    torch.manual_seed(0)
    model = One(nn.Linear(12, 8)).double()
    peft = get_peft_model(model, PolyConfig(target_modules=["layer"], r=2, n_tasks=3, n_skills=3, n_splits=2, init_weights=False),
                          autocast_adapter_dtype=False).eval()
    layer = peft.adapted["layer"]
    p = layer.tensors("default")
    with torch.no_grad():
        p["poly_router.module_logits"].normal_()
    x, tasks = torch.randn(2, 5, 12).double(), torch.tensor([2, 0])
    expected = []
    for rows, task in zip(x, tasks):
        share = p["poly_router.module_logits"][task].view(2, 3).sigmoid()
        share = share / share.sum(1, keepdim=True)
        A = torch.cat([sum(share[q, s] * p["poly_lora_A"][q, s] for s in range(3)) for q in range(2)])
        B = torch.cat([sum(share[q, s] * p["poly_lora_B"][q, s] for s in range(3)) for q in range(2)], 1)
        expected.append(layer.base_layer(rows) + rows @ A @ B / 2)
    torch.testing.assert_close(peft(x, task_ids=tasks), torch.stack(expected))
    torch.testing.assert_close(peft(x[:, 0], task_ids=tasks), torch.stack(expected)[:, 0])
    for wrong, said in ((None, "task_ids should not be None"), (torch.tensor([0, 3]), "Only 3 tasks available. Found task id = 3")):
        with pytest.raises(ValueError, match=said):
            peft(x) if wrong is None else peft(x, task_ids=wrong)
    with pytest.raises(ValueError, match="equal slices"):
        get_peft_model(One(nn.Linear(9, 8)), PolyConfig(target_modules=["layer"], n_splits=2))


def test_samples_with_adapters_of_their_own_keep_their_tasks():
    torch.manual_seed(0)
    config = lambda: PolyConfig(target_modules=["layer"], r=2, n_tasks=2, init_weights=False)  # noqa: E731
    peft = get_peft_model(One(nn.Linear(12, 8)), config(), "a").eval()
    peft.add_adapter("b", config())
    x, tasks = torch.randn(3, 4, 12), torch.tensor([1, 0, 1])
    together = peft(x, task_ids=tasks, adapter_names=["b", "a", "__base__"])
    for row, name in enumerate(("b", "a")):
        peft.set_adapter(name)
        torch.testing.assert_close(together[row], peft(x, task_ids=tasks)[row])
    with peft.disable_adapter():
        torch.testing.assert_close(together[2], peft(x)[2])
