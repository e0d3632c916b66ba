"""Small helps: signatures, strengths for a while, whether there is an adapter."""

from __future__ import annotations

import inspect

import pytest
import torch

from engine import (LoHaConfig, LoraConfig, PromptTuningConfig, check_if_peft_model, disable_input_dtype_casting, get_peft_model,
                    inject_adapter_in_model, rescale_adapter_scale, update_forward_signature, update_generate_signature, update_signature)
from tests.support.tiny import make_model

IDS = torch.arange(3, 19)[None]
CONFIGS = [LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False)]


def adapted(config=CONFIGS[0]):
    torch.manual_seed(0)
    return get_peft_model(make_model(), config).eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("name, update", [("forward", update_forward_signature), ("generate", update_generate_signature)])
def test_a_signature_is_the_base_s(name, update):
    model, expected = adapted(), None
    expected = logits(model)
    update(model)
    first = getattr(model, name)
    theirs = inspect.signature(getattr(make_model(), name)).parameters
    assert set(theirs) <= set(inspect.signature(first).parameters) and "adapter_names" in inspect.signature(first).parameters
    update(model)
    assert getattr(model, name) == first
    assert torch.equal(logits(model), expected) and model.generate(input_ids=IDS, max_new_tokens=2).shape == (1, 18)


@pytest.mark.parametrize("word, both", [("all", {"forward", "generate"}), ("forward", {"forward"}), ("generate", {"generate"})])
def test_one_signature_or_both(word, both):
    model = adapted()
    update_signature(model, word)
    assert {name for name in ("forward", "generate") if name in model.__dict__} == both
    with pytest.raises(ValueError, match="not supported"):
        update_signature(model, "train")


def test_what_cannot_generate_has_no_signature_to_show():
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(3, 3)), LoraConfig(r=1, target_modules=["0"]))
    update_signature(model)
    assert "generate" not in model.__dict__


@pytest.mark.parametrize("config", CONFIGS, ids=["lora", "loha"])
@pytest.mark.parametrize("merged", [False, True], ids=["beside", "merged"])
def test_strengths_change_for_a_while(config, merged):
    model = adapted(config)
    with model.disable_adapter():
        base = logits(model)
    once = logits(model)
    if merged:
        model.merge_adapter()
    before = logits(model)
    with rescale_adapter_scale(model, 0.0):
        torch.testing.assert_close(logits(model), base)
    with rescale_adapter_scale(model, 0.5):
        half = logits(model)
        with rescale_adapter_scale(model, 2.0):
            torch.testing.assert_close(logits(model), once, atol=1e-5, rtol=1e-5)
        assert torch.equal(logits(model), half)
    assert torch.equal(logits(model), before) and model.stack.entries[0][1] == 1.0 and model.merged_adapters == (["default"] if merged else [])
    with pytest.raises(KeyError), rescale_adapter_scale(model, 3.0):
        raise KeyError
    assert torch.equal(logits(model), before)


def test_in_a_model_that_was_injected_into():
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), make_model())
    before = logits(model)
    with rescale_adapter_scale(model, 0):
        torch.testing.assert_close(logits(model), logits(make_model()))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("multiplier, error", [("2", TypeError), (True, TypeError), (None, TypeError), (float("nan"), ValueError),
                                               (float("inf"), ValueError)])
def test_no_number_no_change(multiplier, error):
    model = adapted()
    before = logits(model)
    with pytest.raises(error), rescale_adapter_scale(model, multiplier):
        pytest.fail("the block must not begin")
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("make", [make_model, lambda: get_peft_model(make_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))],
                         ids=["bare", "prompt"])
def test_what_has_no_strength_cannot_be_rescaled(make):
    with pytest.raises(ValueError, match="scaling is only supported"), rescale_adapter_scale(make(), 2.0):
        pytest.fail("the block must not begin")


def test_whether_there_is_an_adapter(tmp_path):
    adapted().save_pretrained(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "adapter_config.json").write_text("{")
    assert check_if_peft_model(tmp_path / "good")
    assert not any(check_if_peft_model(place) for place in (tmp_path / "bad", tmp_path, tmp_path / "nowhere", "nobody/nothing"))


def test_formats_are_kept_anyway():
    model = adapted()
    with disable_input_dtype_casting(model):
        inside = logits(model)
    assert torch.equal(inside, logits(model))


def test_inputs_keep_their_number_format():
    """Weights in 16 bits that hooks widen for their own pass (layerwise casting): inputs in float32 are not narrowed on the way."""
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 8)), LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)).half()
    x, W = torch.randn(3, 6), model.base_model.model[0].compose().float()

    def cast(dtype: torch.dtype):
        def hook(module, *_):
            for p in module.parameters(recurse=False):
                p.data = p.data.to(dtype)

        return hook

    for module in model.modules():
        module.register_forward_pre_hook(cast(torch.float32))
        module.register_forward_hook(cast(torch.float16))
    y = model(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, x @ W.T + model.base_model.model[0].bias.float(), atol=5e-3, rtol=5e-3)
    with disable_input_dtype_casting(model):
        assert torch.equal(model(x), y)
