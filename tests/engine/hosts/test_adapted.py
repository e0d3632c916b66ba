"""A layer with adapters as an object among others."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from torch.func import functional_call

from engine import IA3Config, LoHaConfig, LoraConfig, get_peft_model
from tests.engine.test_laws import One


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copied", "pickled"])
@pytest.mark.parametrize("learning", [True, False])
def test_a_copy_that_has_run_before_runs_its_own_tensors(again, learning):
    peft = get_peft_model(One(nn.Linear(6, 4)), LoraConfig(r=2, target_modules=["first"], init_lora_weights=False)).eval()
    x = torch.randn(3, 6)
    with torch.set_grad_enabled(learning):
        before = peft(x)
        twin = again(peft)
        for tensor in twin.adapted["first"].tensors("default").values():
            tensor.data.zero_()
        assert torch.equal(peft(x), before)
        torch.testing.assert_close(twin(x), peft.adapted["first"].base_layer(x))


KINDS = {"lora": LoraConfig(r=2, target_modules=["first"], init_lora_weights=False),
         "dora": LoraConfig(r=2, target_modules=["first"], init_lora_weights=False, use_dora=True),
         "loha": LoHaConfig(r=2, target_modules=["first"], init_weights=False),
         "ia3": IA3Config(target_modules=["first"], feedforward_modules=[])}


def written(held, name):
    held[name].mul_(2)


def given_data(held, name):
    held[name].data = held[name].data * 2


def put_another(held, name):
    held[name] = nn.Parameter(held[name] * 2, held[name].requires_grad)


@pytest.mark.parametrize("change", [written, given_data, put_another])
@pytest.mark.parametrize("whose", ["base", "adapter"])
@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_has_run_runs_what_its_tensors_are_now(kind, learning, trains, whose, change):
    torch.manual_seed(0)
    peft = get_peft_model(One(nn.Linear(6, 4)), copy.copy(KINDS[kind])).eval()
    peft.set_requires_grad("default", trains)
    layer, x = peft.adapted["first"], torch.randn(3, 6)
    with torch.set_grad_enabled(learning):
        peft(x)
        with torch.no_grad():
            for held, name in [(layer.bare._parameters, "weight")] if whose == "base" else layer.places("default").values():
                change(held, name)
        ran = peft(x)
        torch.testing.assert_close(ran, pickle.loads(pickle.dumps(peft))(x))
        assert ran.requires_grad == (learning and trains)


def test_a_frozen_adapter_that_has_run_learns_when_its_tensors_are_to():
    peft = get_peft_model(One(nn.Linear(6, 4)), copy.copy(KINDS["lora"])).eval()
    peft.set_requires_grad("default", False)
    assert not peft(torch.randn(3, 6)).requires_grad
    for tensor in (tensors := peft.adapted["first"].tensors("default")).values():
        tensor.requires_grad_(True)
    peft(torch.randn(3, 6)).sum().backward()
    assert all(tensor.grad.any() for tensor in tensors.values())


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_other_tensors_for_a_single_call(kind, learning):
    torch.manual_seed(0)
    peft = get_peft_model(One(nn.Linear(6, 4)), copy.copy(KINDS[kind])).eval()
    x, others = torch.randn(3, 6), {name: 2 * tensor.detach() for name, tensor in peft.named_parameters()}
    twin = copy.deepcopy(peft)
    with torch.no_grad():
        for name, tensor in twin.named_parameters():
            tensor.copy_(others[name])
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(functional_call(peft, others, (x,)), twin(x))
        own = peft(x)
        torch.testing.assert_close(functional_call(peft, others, (x,)), twin(x))
        torch.testing.assert_close(peft(x), own)
