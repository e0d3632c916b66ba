"""Adapters without values until a file comes."""

from __future__ import annotations

import copy

import pytest
import torch

from engine import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from tests.engine.test_laws import One, make_config, trained_tensors

# whatever no file holds, and is made again from a seed or from the weight
KINDS = ["adamss", "fourierft", "kasa", "loha", "lora", "lora-pissa", "osf", "psoft", "shira", "supertuning", "tinylora", "unilora",
         "vera", "vera-seeded", "waveft"]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_adapter_without_values_is_whole_when_its_file_has_come(kind):
    torch.manual_seed(0)
    base, x = One(torch.nn.Linear(12, 8)), torch.randn(5, 12)
    peft = get_peft_model(copy.deepcopy(base), make_config(kind)).eval()
    for tensor in trained_tensors(peft, "default"):
        tensor.add_(torch.randn_like(tensor) * 0.1)
    peft.stack.changed()
    empty = get_peft_model(copy.deepcopy(base), make_config(kind), low_cpu_mem_usage=True).eval()
    held = [tensor for name, tensor in empty.state_dict().items() if "base_layer" not in name]
    assert any(tensor.is_meta for tensor in held)
    assert set_peft_model_state_dict(empty, get_peft_model_state_dict(peft), low_cpu_mem_usage=True).complete
    torch.testing.assert_close(empty(x), peft(x), atol=1e-5, rtol=1e-5)
