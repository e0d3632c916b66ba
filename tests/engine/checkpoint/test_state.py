"""Adapters as state dicts, whatever training has wrapped round the model."""

from __future__ import annotations

import pytest
import torch
from torch import distributed, nn

from engine import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


@pytest.fixture
def one_process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("make", [get_peft_model, lambda model, config: inject_adapter_in_model(config, model)], ids=["wrapped", "injected"])
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, sharded])
def test_what_is_wrapped_round_a_model_is_looked_through(make, wrap, one_process):
    torch.manual_seed(0)
    model = make(nn.Sequential(nn.Linear(6, 8)), LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    expected = {key: tensor.clone() for key, tensor in get_peft_model_state_dict(model).items()}
    wrapped = wrap(model)
    state = get_peft_model_state_dict(wrapped)
    assert state.keys() == expected.keys() and all(torch.equal(t, expected[key]) for key, t in state.items())
    report = set_peft_model_state_dict(wrapped, {key: t + 1 for key, t in expected.items()})
    assert report.complete
    assert all(torch.equal(t, expected[key] + 1) for key, t in get_peft_model_state_dict(wrapped).items())
