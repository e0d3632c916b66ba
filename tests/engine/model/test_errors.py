"""What PEFT's table of errors asks for: one clear sentence, and a model that is as it was before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import (AdaLoraConfig, BOFTConfig, LilyConfig, LoraConfig, OSFConfig, PeanutConfig, PeftModel, TinyLoraConfig, TrainableTokensConfig,
                    get_peft_model)
from engine.errors import BadAdapter, UnsupportedLayer, WrongBase
from tests.support.families import family, ids
from tests.support.tiny import make_model

IDS = torch.arange(3, 19)[None]


class Pooled(nn.Module):
    """A layer that carries no adapter of any kind beside one that does."""

    def __init__(self):
        super().__init__()
        self.layer, self.pool = nn.Linear(4, 4), nn.MaxPool1d(2)

    def forward(self, x):
        return self.pool(self.layer(x))


@pytest.mark.parametrize("cls", [LoraConfig, BOFTConfig, LilyConfig, PeanutConfig, TinyLoraConfig, TrainableTokensConfig, OSFConfig])
def test_a_layer_that_carries_no_adapter(cls):
    model = Pooled()
    more = {"token_indices": [1]} if cls is TrainableTokensConfig else {}
    with pytest.raises(ValueError, match="pool"):
        get_peft_model(model, cls(target_modules=["pool"], **more))
    assert type(model.pool) is nn.MaxPool1d and type(model.layer) is nn.Linear and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("settings", [{"target_modules": ["nothing"]}, {"r": 0}, {"init_lora_weights": "foo"}, {"task_type": "SHOPPING"},
                                      {"target_modules": ".*q_proj", "layers_to_transform": [0]},
                                      {"target_modules": ".*q_proj", "layers_pattern": "layers"}], ids=str)
def test_settings_that_make_no_sense(settings):
    model = make_model()
    with pytest.raises(ValueError):
        get_peft_model(model, LoraConfig(**{"target_modules": ["q_proj"], **settings}))
    assert model.state_dict().keys() == make_model().state_dict().keys() and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("names", [["default"], ["nobody", "default"], ["default", "default", "default"]], ids=["too few", "unknown", "too many"])
def test_adapters_of_samples(names):
    model = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    before = model(IDS.repeat(2, 1)).logits
    with pytest.raises(ValueError):
        model(IDS.repeat(2, 1), adapter_names=names)
    with pytest.raises(ValueError, match="train"):
        model.train()(IDS.repeat(2, 1), adapter_names=["default", "default"])
    assert torch.equal(model.eval()(IDS.repeat(2, 1)).logits, before)


def test_files_that_are_not_there(tmp_path):
    model = make_model()
    with pytest.raises(BadAdapter, match="Can't find 'adapter_config.json'"):
        PeftModel.from_pretrained(model, tmp_path)
    get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(BadAdapter, match="Can't find weights"):
        PeftModel.from_pretrained(model, tmp_path)
    assert model.state_dict().keys() == make_model().state_dict().keys() and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("more", [False, True], ids=["a first adapter", "a second one"])
def test_sizes_of_another_model(more, tmp_path):
    get_peft_model(make_model(hidden=32), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    model = make_model()
    before = {name: type(module) for name, module in model.named_modules()}
    if more:
        peft = get_peft_model(model, LoraConfig(target_modules=["v_proj"], init_lora_weights=False)).eval()
        heard = peft(IDS).logits
    with pytest.raises(WrongBase, match="other sizes"):
        peft.load_adapter(tmp_path, "other") if more else PeftModel.from_pretrained(model, tmp_path)
    if more:
        assert list(peft.peft_config) == ["default"] and torch.equal(peft(IDS).logits, heard)
        model = peft.unload()
    assert {name: type(module) for name, module in model.named_modules()} == before and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("target", ["out_proj", "conv1d", "dt_proj"])
def test_layers_that_a_mamba_never_runs(target):
    model = family("Mamba", "ForCausalLM")
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(UnsupportedLayer, match="incompatible with Mamba-based models"):
        get_peft_model(model, LoraConfig(target_modules=["in_proj", target]))
    assert {name: type(module) for name, module in model.named_modules()} == before and all(p.requires_grad for p in model.parameters())
    peft = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    assert {path.rpartition(".")[2] for path in peft.adapted} == {"in_proj", "x_proj"}
    running = peft(ids()).logits
    peft.merge_adapter()
    torch.testing.assert_close(peft(ids()).logits, running, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [lambda: LoraConfig(target_modules=["q_proj", "fc1"], bias="all", init_lora_weights=False),
                                    lambda: AdaLoraConfig(target_modules=["q_proj"], init_lora_weights=False, total_step=10)],
                         ids=["bias", "AdaLoRA"])
def test_what_peft_can_hold_only_once_is_held_twice(config):
    """Biases are the adapter's own here, and one AdaLoRA's ranks are nothing to another."""
    peft = get_peft_model(family("OPT", "ForCausalLM"), config(), "one").eval()
    base = family("OPT", "ForCausalLM")(ids()).logits
    peft.add_adapter("two", config())
    with torch.no_grad():
        for name in ("one", "two"):
            for path in peft.tenants(name):
                for key, tensor in peft.adapted[path].tensors(name).items():
                    tensor.add_(0.05 * torch.randn_like(tensor)) if "lora" in key or "bias" in key else None
    peft.stack.changed()
    peft.set_adapter(["one", "two"])
    both = peft(ids()).logits
    peft.merge_adapter()
    torch.testing.assert_close(peft(ids()).logits, both, atol=1e-4, rtol=1e-4)
    peft.set_adapter("one")
    assert not torch.allclose(peft(ids()).logits, both)
    assert torch.equal(peft.unload()(ids()).logits, base)


def test_a_name_that_is_taken():
    peft = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"]))
    layers = set(peft.adapted)
    with pytest.raises(ValueError, match="already exists"):
        peft.add_adapter("default", LoraConfig(target_modules=["v_proj"]))
    for act in (peft.set_adapter, peft.delete_adapter):
        with pytest.raises(ValueError):
            act("nobody")
    assert set(peft.adapted) == layers and peft.active_adapters == ["default"]
