"""A batch whose samples hear different adapters, however it is laid out, is each sample alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import LoraConfig, get_peft_model
from tests.engine.test_laws import One


def adapted(bias: bool, dtype: torch.dtype = torch.float64, ranks=(3, 3, 3)):
    """A layer with the adapters a, b and c, frozen."""
    def config(r: int) -> LoraConfig:
        return LoraConfig(r=r, lora_alpha=2 * r, target_modules=["first"], init_lora_weights=False, inference_mode=True)

    peft = get_peft_model(One(nn.Linear(6, 4, bias=bias)).to(dtype), config(ranks[0]), "a", autocast_adapter_dtype=False).eval()
    for name, r in zip("bc", ranks[1:]):
        peft.add_adapter(name, config(r), autocast_adapter_dtype=False)
    return peft


def alone(peft, x: torch.Tensor, names: list[str]) -> torch.Tensor:
    """Sample by sample, with the stack set to the adapter that it hears."""
    found = []
    for row, name in zip(x, names, strict=True):
        if name == "__base__":
            with peft.disable_adapter():
                found.append(peft(row[None]))
        else:
            peft.set_adapter(name)
            found.append(peft(row[None]))
    return torch.cat(found)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ranks", [(3, 3, 3), (1, 2, 3)], ids=["one rank", "ranks"])
@pytest.mark.parametrize("rows", [(), (1,), (5,), (40,)], ids=str)
@torch.no_grad()
def test_a_mixed_batch_is_each_sample_alone(bias, ranks, rows):
    peft = adapted(bias, ranks=ranks)
    for names in (["a", "b", "c"], ["c", "a", "b"], ["a", "a", "b", "b", "c", "c"], ["b", "__base__", "a", "b"], ["c"], ["a", "b", "c"]):
        x = torch.randn(len(names), *rows, 6, dtype=torch.float64)
        together = peft(x, adapter_names=names)
        torch.testing.assert_close(together, alone(peft, x, names))
        torch.testing.assert_close(peft(x, adapter_names=names), together)        # what was kept of the first pass says the same


@torch.no_grad()
def test_who_watches_the_layer_sees_its_own_output_in_a_mixed_batch():
    peft, seen = adapted(True), []
    names, x = ["a", "b", "c"], torch.randn(3, 1, 6, dtype=torch.float64)
    before = peft(x, adapter_names=names)
    base = peft.adapted["first"].base_layer
    handle = base.register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(peft(x, adapter_names=names), before)
    assert torch.equal(seen[0], nn.functional.linear(x, base.weight, base.bias))
    handle.remove()
    base.forward = lambda x: x.new_zeros(*x.shape[:-1], 4)
    torch.testing.assert_close(peft(x, adapter_names=names), before - seen[0])


@torch.no_grad()
def test_a_mixed_batch_of_another_length_is_refused_also_after_one_that_fitted():
    peft, names = adapted(False), ["a", "b", "c"]
    peft(torch.randn(3, 1, 6, dtype=torch.float64), adapter_names=names)
    with pytest.raises(ValueError, match="should be the same as the number of inputs"):
        peft(torch.randn(1, 3, 6, dtype=torch.float64), adapter_names=names)


@torch.no_grad()
def test_a_mixed_batch_hears_what_was_changed_in_between():
    peft, names, x = adapted(True), ["a", "b", "c"], torch.randn(3, 1, 6, dtype=torch.float64)
    peft(x, adapter_names=names)
    peft.delete_adapter("b")
    torch.manual_seed(1)
    peft.add_adapter("b", LoraConfig(r=3, target_modules=["first"], init_lora_weights=False, inference_mode=True), autocast_adapter_dtype=False)
    torch.testing.assert_close(peft(x, adapter_names=names), alone(peft, x, names))
    peft.to(torch.float32)
    x = x.float()
    torch.testing.assert_close(peft(x, adapter_names=names), alone(peft, x, names))
    with torch.autocast("cpu", torch.bfloat16):
        assert peft(x, adapter_names=names).dtype is torch.bfloat16
