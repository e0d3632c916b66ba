"""What PEFT's table of errors asks for: one clear sentence, and a model that is as it was before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import (BOFTConfig, LilyConfig, LoraConfig, OSFConfig, PeanutConfig, PeftModel, TinyLoraConfig, TrainableTokensConfig, get_peft_model)
from engine.errors import BadAdapter
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
