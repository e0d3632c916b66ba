"""Loading tells everything, and a load that cannot be right changes nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from engine.errors import BadAdapter, WrongBase
from tests.support.tiny import make_model


@pytest.fixture
def saved(tmp_path):
    """A folder with a trained-looking adapter."""
    model = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors = {k: v.clone() for k, v in tensors.items()}
    save_file(change(tensors) or tensors, folder / "adapter_model.safetensors")


def test_missing_and_unexpected_are_told(saved):
    def change(tensors):
        tensors.pop("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight")
        tensors["base_model.model.model.layers.9.self_attn.q_proj.lora_B.weight"] = torch.zeros(2)
        tensors["something.else"] = torch.zeros(1)

    rewrite(saved, change)
    report = PeftModel.from_pretrained(make_model(), saved).load_report
    assert report.missing == ["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    assert sorted(report.unexpected) == ["base_model.model.model.layers.9.self_attn.q_proj.lora_B.weight", "something.else"]
    assert len(report.loaded) == 7 and not report.complete
    assert "missing" in report.sentence() and "not used" in report.sentence()


def test_old_and_foreign_names_are_understood(saved):
    expected = PeftModel.from_pretrained(make_model(), saved)(torch.arange(6)[None]).logits
    rewrite(saved, lambda ts: {k.removeprefix("base_model.model.").replace("layers.", "_orig_mod.layers."): t for k, t in ts.items()})
    model = PeftModel.from_pretrained(make_model(), saved)
    assert torch.equal(model(torch.arange(6)[None]).logits, expected)
    assert len(model.load_report.renamed) == 8


def test_a_load_in_which_nothing_matches_is_an_error(saved):
    rewrite(saved, lambda ts: {k.replace("layers", "blocks"): t for k, t in ts.items()})
    with pytest.raises(WrongBase, match="Nothing of the adapter fits"):
        PeftModel.from_pretrained(make_model(), saved)


def test_another_size_of_the_model(saved):
    model = make_model(hidden=32)
    names = list(model.state_dict())
    with pytest.raises(WrongBase, match="other sizes"):
        PeftModel.from_pretrained(model, saved)
    assert list(model.state_dict()) == names


def test_values_that_are_not_numbers(saved):
    rewrite(saved, lambda ts: {k: t * float("nan") for k, t in ts.items()})
    with pytest.raises(BadAdapter, match="not numbers"):
        PeftModel.from_pretrained(make_model(), saved)


@pytest.mark.parametrize(("change", "words"), [
    ({"peft_type": "SOMETHING"}, "kind"), ({"peft_type": None}, "kind"), ({"megatron_config": {"a": 1}}, "impossible"),
    ({"r": "eight"}, "impossible")])
def test_configs_that_cannot_be_used(saved, change, words):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadAdapter, match=words):
        PeftModel.from_pretrained(make_model(), saved)


def test_settings_of_a_newer_peft_are_told(saved):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shiny": 1}))
    assert PeftModel.from_pretrained(make_model(), saved).load_report.unknown_settings == ["shiny"]


def test_no_adapter_and_no_weights(saved, tmp_path):
    with pytest.raises(BadAdapter, match="Can't find 'adapter_config.json'"):
        PeftModel.from_pretrained(make_model(), tmp_path / "nowhere")
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    with pytest.raises(BadAdapter, match="damaged, or holds more"):           # it is no pickle either
        PeftModel.from_pretrained(make_model(), saved)
    (saved / "adapter_model.bin").unlink()
    with pytest.raises(BadAdapter, match="Can't find weights"):
        PeftModel.from_pretrained(make_model(), saved)


def test_a_subfolder_may_not_lead_outside(saved):
    with pytest.raises(BadAdapter, match="outside"):
        PeftModel.from_pretrained(make_model(), saved, subfolder="../..")


def test_half_precision_files_stay_small_in_memory(saved):
    rewrite(saved, lambda ts: {k: t.bfloat16() for k, t in ts.items()})
    model = PeftModel.from_pretrained(make_model(), saved)
    tensors = [t for layer in model.adapted.values() for t in layer.tensors("default").values()]
    assert {t.dtype for t in tensors} == {torch.bfloat16}
    trainable = PeftModel.from_pretrained(make_model(), saved, is_trainable=True)
    assert {p.dtype for p in trainable.parameters() if p.requires_grad} == {torch.float32}


def test_the_file_may_go_after_loading(saved):
    model = PeftModel.from_pretrained(make_model(), saved)
    expected = model(torch.arange(6)[None]).logits
    with open(saved / "adapter_model.safetensors", "r+b") as file:
        file.seek(100)
        file.write(b"\0" * 4000)
    assert torch.equal(model(torch.arange(6)[None]).logits, expected)


def test_state_dict_in_and_out(saved):
    model = PeftModel.from_pretrained(make_model(), saved)
    ids = torch.arange(6)[None]
    expected = model(ids).logits
    state = {k: t.clone() for k, t in get_peft_model_state_dict(model).items()}
    assert set_peft_model_state_dict(model, {k: t * 0 for k, t in state.items()}).complete
    with model.disable_adapter():
        base = model(ids).logits
    assert torch.equal(model(ids).logits, base)
    set_peft_model_state_dict(model, state)
    assert torch.equal(model(ids).logits, expected)
    with pytest.raises(WrongBase):
        set_peft_model_state_dict(model, {k: t[..., :1] for k, t in state.items()})
    assert torch.equal(model(ids).logits, expected)


def test_deleting_adapters_leaves_the_rest(saved):
    model = PeftModel.from_pretrained(make_model(), saved, "a")
    model.load_adapter(saved, "b")
    ids = torch.arange(6)[None]
    expected = model(ids).logits
    model.set_adapter(["b", "a"])
    model.delete_adapter("b")
    assert model.active_adapters == ["a"] and torch.equal(model(ids).logits, expected)
    model.delete_adapter("a")
    with model.disable_adapter():
        base = model(ids).logits
    assert torch.equal(model(ids).logits, base)                # without any adapter it is the base, not a broken model
    assert not [n for n, _ in model.named_parameters() if "lora" in n]
