"""A second `PeftModel` of a base that another one has left its adapters in."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from engine import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from engine.errors import UnsupportedLayer
from engine.hosts.adapted import Adapted


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.MultiheadAttention(8, 2))


def lora(*targets: str, **more) -> LoraConfig:
    return LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False, **more)


def test_the_second_begins_at_the_plain_base(tmp_path):
    base, x = small()[:2], torch.randn(3, 6)
    plain = base(x)
    first = get_peft_model(base, lora("0", "1"))
    first.save_pretrained(tmp_path)
    expected = first.eval()(x)
    first.merge_adapter()
    with pytest.warns(UserWarning, match="You are trying to modify a model"):
        second = get_peft_model(base, LoHaConfig(r=2, target_modules=["0"]))
    torch.testing.assert_close(second(x), plain)
    assert isinstance(base[0], Adapted) and type(base[1]) is nn.Linear
    again = PeftModel.from_pretrained(base, tmp_path)        # over the second
    assert torch.equal(again(x), expected) and list(again.peft_config) == ["default"]
    assert torch.equal(again.unload()(x), plain)


def test_one_that_fails_leaves_the_first_as_it_was():
    base, x = small()[:2], torch.randn(3, 6)
    first = get_peft_model(base, lora("0", "1")).eval()
    running = first(x)
    for merged in (False, True):
        if merged:
            first.merge_adapter()
        with pytest.warns(UserWarning, match="has adapters already"), pytest.raises(UnsupportedLayer):
            get_peft_model(base, lora("nowhere"))
        torch.testing.assert_close(first(x), running)
        first.stack.set_strength("default", 1.0) if not merged else first.unmerge_adapter()
        assert torch.equal(first(x), running)


def test_attention_is_plain_again_too():
    base, x = small(), torch.randn(4, 2, 8)
    plain = base[2](x, x, x)[0]
    get_peft_model(base, lora("2"))
    with pytest.warns(UserWarning, match="has adapters already"):
        second = get_peft_model(base, lora("0"))
    assert type(base[2]) is nn.MultiheadAttention and torch.equal(base[2](x, x, x)[0], plain)
    assert list(second.adapted) == ["0"]


def test_one_round_the_other_keeps_both():
    base, x = small()[:2], torch.randn(3, 6)
    inner = get_peft_model(base, lora("0")).eval()
    with pytest.warns(UserWarning, match="has adapters already"):
        outer = get_peft_model(inner, lora("base_model.model.1")).eval()
    both = outer(x)
    with inner.disable_adapter():
        assert not torch.equal(outer(x), both)
    with outer.disable_adapter():
        torch.testing.assert_close(outer(x), inner(x))


def test_after_unload_there_is_nothing_to_warn_of():
    base = small()[:2]
    get_peft_model(base, lora("0")).unload()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_peft_model(base, lora("0"))
