"""Adapters, and habits of naming layers, from before the transformers library renamed and fused them."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from engine import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from engine.errors import UnsupportedLayer
from engine.model.targets import NoMatchingPeftModuleError
from tests.engine.model.test_families import base, logits

EXPERTS = {"Mixtral": ("block_sparse_moe", "w1", "w3", "w2"), "Qwen3Moe": ("mlp", "gate_proj", "up_proj", "down_proj")}
kinds = pytest.mark.parametrize("name", EXPERTS)


def old_experts(folder, name: str, targets: list[str] | str | None = None, without: str = "nothing"):
    """A LoRA of rank 2 on everything in the blocks of a mixture, as the fourth release named it; and the base with it baked in by hand."""
    torch.manual_seed(5)
    model, file = base(name), {}
    block, *parts = EXPERTS[name]

    def learned(path: str, weight: torch.Tensor) -> None:
        A, B = torch.randn(2, weight.shape[1]) * 0.2, torch.randn(weight.shape[0], 2) * 0.2
        if not path.endswith(without):
            file[f"base_model.model.{path}.lora_A.weight"], file[f"base_model.model.{path}.lora_B.weight"] = A, B
        weight += 1.5 * B @ A

    with torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            for proj in ("q_proj", "k_proj", "v_proj", "o_proj"):
                learned(f"model.layers.{i}.self_attn.{proj}", layer.self_attn.get_submodule(proj).weight)
            learned(f"model.layers.{i}.{block}.gate", layer.mlp.gate.weight)
            for e in range(3):
                for part, weight in zip(parts, (*layer.mlp.experts.gate_up_proj[e].chunk(2), layer.mlp.experts.down_proj[e]), strict=True):
                    learned(f"model.layers.{i}.{block}.experts.{e}.{part}", weight)
    write(folder, file, targets or ["q_proj", "k_proj", "v_proj", "o_proj", "gate", *parts])
    return model


def write(folder, file: dict, targets, **more) -> None:
    save_file(file, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": targets, **more}))


@kinds
@pytest.mark.parametrize("targets", [None, "all-linear", r".*\.(experts\.\d+\.\w+|gate|[qkvo]_proj)"], ids=["names", "all-linear", "pattern"])
def test_experts_that_are_one_parameter_now(name, targets, tmp_path):
    expected = old_experts(tmp_path, name, targets)
    peft = PeftModel.from_pretrained(base(name), tmp_path)
    assert peft.load_report.complete, peft.load_report.sentence()
    torch.testing.assert_close(logits(peft), logits(expected), atol=1e-4, rtol=1e-4)
    peft.save_pretrained(tmp_path / "new")                      # and from there on it is an ordinary adapter of today
    again = PeftModel.from_pretrained(base(name), tmp_path / "new")
    assert again.load_report.complete
    torch.testing.assert_close(logits(again), logits(peft))


@kinds
def test_half_of_what_is_one_parameter_now(name, tmp_path):
    model = base(name)
    half = EXPERTS[name][1]
    with pytest.raises(UnsupportedLayer, match=f"Cannot target {half} without"):
        get_peft_model(model, LoraConfig(target_modules=["q_proj", half]))
    old_experts(tmp_path, name, without=f"1.{EXPERTS[name][3]}")
    loaded = PeftModel.from_pretrained(model, tmp_path)         # one expert is missing
    assert not loaded.load_report.complete and loaded.load_report.missing and loaded.load_report.unexpected


def test_a_vision_transformer_of_the_fourth_release(tmp_path):
    torch.manual_seed(5)
    expected, file = base("ViT"), {}
    with torch.no_grad():
        for i, layer in enumerate(expected.vit.layers):
            for old, new in (("attention.attention.query", "attention.q_proj"), ("attention.output.dense", "attention.o_proj"),
                             ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2")):
                weight, rank = layer.get_submodule(new).weight, 4 if "query" in old else 2
                A, B = torch.randn(rank, weight.shape[1]) * 0.2, torch.randn(weight.shape[0], rank) * 0.2
                file |= {f"base_model.model.vit.encoder.layer.{i}.{old}.lora_A.weight": A,
                         f"base_model.model.vit.encoder.layer.{i}.{old}.lora_B.weight": B}
                weight += 3 / rank * B @ A
    for targets in (["query", "dense"], r".*\.(query|dense)"):
        write(tmp_path, file, targets, rank_pattern={"query": 4})
        peft = PeftModel.from_pretrained(base("ViT"), tmp_path)
        assert peft.load_report.complete, peft.load_report.sentence()
        assert set(peft.peft_config["default"].target_modules) == {"q_proj", "o_proj", "fc1", "fc2"}
        torch.testing.assert_close(logits(peft), logits(expected), atol=1e-4, rtol=1e-4)


def test_settings_are_not_changed_and_nothing_is_hidden():
    config = LoraConfig(target_modules=["q_proj", "w1", "w2", "w3"])
    before = copy.deepcopy(config.to_dict())
    peft = get_peft_model(base("Mixtral"), config)
    assert config.to_dict() | {"base_model_name_or_path": None} == before
    assert peft.peft_config["default"].target_parameters == ["down_proj", "gate_up_proj"]
    peft.add_adapter("second", LoraConfig(target_modules="all-linear"))
    assert peft.peft_config["second"].target_parameters == ["down_proj", "gate.weight", "gate_up_proj"]
    with pytest.raises(NoMatchingPeftModuleError):
        get_peft_model(base("Llama"), LoraConfig(target_modules=["w1", "w3"]))


def test_what_is_a_lora_otherwise_stays_off_the_experts():
    """AdaLoRA has LoRA's settings, but sits on no parameters (as in PEFT)."""
    peft = get_peft_model(base("Mixtral"), AdaLoraConfig(target_modules="all-linear", total_step=10))
    assert {path.rpartition(".")[2] for path in peft.adapted} == {"q_proj", "k_proj", "v_proj", "o_proj"}
