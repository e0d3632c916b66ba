"""PEFT's habits of configs."""

from __future__ import annotations

import json

import pytest

from engine.compat import install_as_peft

peft = install_as_peft()


def test_kinds_are_enumerations_and_names_sets():
    config = peft.LoraConfig(target_modules=["a", "b"], task_type="CAUSAL_LM")
    assert config.peft_type is peft.PeftType.LORA and config.peft_type.value == "LORA" and config.target_modules == {"a", "b"}
    with pytest.raises(ValueError, match="Invalid task type"):
        peft.LoraConfig(task_type="POETRY")


def test_a_config_comes_back_from_its_file_and_unknown_keys_are_told(tmp_path):
    peft.LoraConfig(r=5, target_modules=["a"]).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "of_tomorrow": 1}))
    with pytest.warns(UserWarning, match="of_tomorrow"):
        config = peft.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(config, peft.LoraConfig) and config.r == 5 and peft.get_peft_config({"peft_type": "LORA", "r": 3}).r == 3
