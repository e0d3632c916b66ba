"""One adapter file on every family of models, through PEFT and through the engine: equal logits; and equal layers where none are named."""

from __future__ import annotations

import peft
import pytest
import torch
from peft.utils import constants

import engine
from engine.methods.registry import method
from engine.model.targets import DEFAULT_TARGETS
from tests.engine.model.test_families import CASES, adapted, base, inputs, logits, settings
from tests.engine.model.test_renamed import EXPERTS, old_experts

BROKEN = {("Mixtral", "default"), ("ViT", "default")}        # in PEFT: it empties the list, and has none
TABLES = {name.removeprefix("TRANSFORMERS_MODELS_TO_").removesuffix("_TARGET_MODULES_MAPPING"): table for name, table in vars(constants).items()
          if name.endswith("_TARGET_MODULES_MAPPING")}


@pytest.mark.parametrize(("name", "targets"), [case for case in CASES if case not in BROKEN],
                         ids=lambda part: part)
def test_one_file_gives_the_same_logits_through_both(name, targets, tmp_path):
    torch.manual_seed(1)
    theirs = peft.get_peft_model(base(name), peft.LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, **settings(targets))).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    assert engine.get_peft_model_state_dict(adapted(name, targets)).keys() == peft.get_peft_model_state_dict(theirs).keys()
    ours = engine.PeftModel.from_pretrained(base(name), tmp_path / "theirs")
    assert ours.load_report.complete, ours.load_report.sentence()
    call = inputs(base(name))
    with torch.no_grad():
        expected = theirs(**call).logits
        torch.testing.assert_close(ours(**call).logits, expected, atol=2e-5, rtol=1e-5)
        ours.save_pretrained(tmp_path / "ours")
        again = peft.PeftModel.from_pretrained(base(name), tmp_path / "ours")
        torch.testing.assert_close(again(**call).logits, expected, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(ours.merge_and_unload()(**call).logits, theirs.merge_and_unload()(**call).logits, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("name", EXPERTS)
def test_a_file_from_before_the_experts_were_one_parameter(name, tmp_path):
    old_experts(tmp_path, name)
    ours, theirs = engine.PeftModel.from_pretrained(base(name), tmp_path), peft.PeftModel.from_pretrained(base(name), tmp_path)
    a, b = engine.get_peft_model_state_dict(ours), peft.get_peft_model_state_dict(theirs)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    torch.testing.assert_close(logits(ours), logits(theirs), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", TABLES)
def test_layers_that_nobody_named(kind):
    """By the model's family. Where PEFT knows none for it, we may."""
    layers = {**DEFAULT_TARGETS, **method({"LNTUNING": "LN_TUNING"}.get(kind, kind)).layers}
    for family, expected in TABLES[kind].items():
        assert layers[family] == expected or set(layers[family]) >= set(expected), family
        assert family == "vit" or len(layers[family]) == len(expected), family
