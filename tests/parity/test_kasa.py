"""KASA against the package `peft`, beyond the common table."""

from __future__ import annotations


import peft as oracle
import torch
from torch import nn

from engine.methods.kasa import regularization
from tests.support.one import One



def test_the_loss_is_that_of_peft():
    torch.manual_seed(3)
    theirs = oracle.get_peft_model(One(nn.Linear(9, 6)), oracle.LoraConfig(
        r=2, target_modules=["layer"], kasa_config=oracle.KasaConfig(beta=0.3, gamma=0.7), init_lora_weights=False))
    layer = theirs.base_model.model.layer
    p = {"lora_A.weight": layer.lora_A["default"].weight, "lora_B.weight": layer.lora_B["default"].weight, "lora_diag": layer.lora_diag["default"]}
    torch.testing.assert_close(regularization(p, 0.3, 0.7), theirs.base_model._get_kasa_loss())
