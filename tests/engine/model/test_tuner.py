"""What fails leaves a model as it was; names that would break one are refused; each sample of a batch has its own adapter."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from engine import LoHaConfig, LoraConfig, OFTConfig, get_peft_model
from engine.errors import UnsupportedLayer
from tests.support.families import family, ids


class Grouped(nn.Module):
    """A linear layer before a convolution whose groups LoRA mixes, so that a map of its own groups cannot stand above it there."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Conv1d(4, 4, 1, groups=2)

    def forward(self, x):
        return self.second(self.first(x).mT)


def adapted():
    torch.manual_seed(0)
    peft = get_peft_model(Grouped(), LoraConfig(target_modules=["first", "second"], r=4, init_lora_weights=False), "low").eval()
    peft.add_adapter("map", OFTConfig(target_modules=["first", "second"], oft_block_size=2, init_weights=False))
    return peft, torch.randn(2, 3, 4)


@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
@pytest.mark.parametrize("before", [[], ["low"]])
@torch.no_grad()
def test_a_merge_that_one_layer_refuses_is_none(merge, before):
    peft, x = adapted()
    own = {name: tensor.clone() for name, tensor in peft.state_dict().items()}
    expected = peft(x)
    if before:
        peft.merge_adapter(before)
    with pytest.raises(UnsupportedLayer, match="cannot sit above"):
        getattr(peft, merge)(adapter_names=["low", "map"])
    assert (peft.active_adapters, peft.merged_adapters) == (["low"], [])
    assert all(torch.equal(tensor, own[name]) for name, tensor in peft.state_dict().items())
    torch.testing.assert_close(peft(x), expected)


@torch.no_grad()
def test_what_a_safe_merge_refuses_is_not_heard_afterwards():
    peft, x = adapted()
    expected = peft(x)
    peft.adapted["first"].tensors("map")["oft_R.weight"].fill_(torch.nan)
    with pytest.raises(ValueError, match="NaNs detected"):
        peft.merge_adapter(["map"], safe_merge=True)
    assert torch.equal(peft(x), expected)


@torch.no_grad()
def test_what_is_merged_is_in_the_stack_from_then_on():
    peft, x = adapted()
    peft.delete_adapter("map")
    peft.add_adapter("more", LoHaConfig(target_modules=["first"], init_weights=False))
    before = peft(x)
    peft.merge_adapter(["more"])
    assert (peft.active_adapters, peft.merged_adapters) == (["low", "more"], ["more"])
    merged = peft(x)
    peft.unmerge_adapter()
    assert not torch.allclose(before, merged)
    torch.testing.assert_close(peft(x), merged)


@pytest.mark.parametrize("name", ["training", "copy", "_keys", "_modules", "__base__", "T_destination"])
@pytest.mark.parametrize("config", [LoraConfig(target_modules=["first"]), LoHaConfig(target_modules=["first"])])
def test_names_that_a_module_needs_for_itself_are_refused(config, name):
    model = Grouped()
    with pytest.raises(ValueError, match="cannot be named"):
        get_peft_model(model, copy.copy(config), name)
    assert type(model.first) is nn.Linear and model.first.weight.requires_grad


@pytest.mark.parametrize("name, head", [("Llama", "ForCausalLM"), ("Bart", "ForConditionalGeneration"), ("T5", "ForConditionalGeneration")])
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=["one", "beams", "answers"])
@torch.no_grad()
def test_each_sample_generates_through_its_own_adapter(name, head, how):
    peft = get_peft_model(family(name, head), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False), "a").eval()
    peft.add_adapter("b", LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    for key, tensor in peft.named_parameters():
        if ".lora_" in key:                # loud enough to be heard in what is said
            tensor.mul_(5)
    names, given = ["b", "__base__", "a", "b"], {"input_ids": ids(4), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    mixed = peft.generate(**given, **how, adapter_names=names).view(4, how.get("num_return_sequences", 1), -1)
    said = {}
    for adapter in "ab":
        peft.set_adapter(adapter)
        said[adapter] = peft.generate(**given, **how).view(mixed.shape)
    with peft.disable_adapter():
        said["__base__"] = peft.generate(**given, **how).view(mixed.shape)
    assert all(torch.equal(mixed[row], said[name][row]) for row, name in enumerate(names))
    assert not torch.equal(said["a"], said["b"]) and peft.stack.samples is None


def test_a_module_of_many_outputs_is_not_for_batches_of_several_adapters():
    peft = get_peft_model(nn.ModuleDict({"first": nn.Linear(4, 4), "gru": nn.GRU(4, 4)}),
                          LoraConfig(target_modules=["first"], modules_to_save=["gru"], r=2)).eval()
    with peft.tuner.sampled(["default", "__base__"]), pytest.raises(TypeError, match="Mixed batching is only supported for modules that"):
        peft.get_base_model()["gru"](torch.randn(2, 3, 4))


@torch.no_grad()
def test_when_adapters_are_off_no_sample_hears_one():
    peft = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules=["0"], r=2, init_lora_weights=False)).eval()
    x = torch.randn(2, 4)
    with peft.disable_adapter():
        assert torch.equal(peft(x, adapter_names=["default", "__base__"]), peft(x))
        with pytest.raises(ValueError, match="Length of `adapter_names`"):
            peft(x, adapter_names=["default"])
    assert not torch.equal(peft(x, adapter_names=["default", "__base__"])[0], peft(x, adapter_names=["__base__", "__base__"])[0])
