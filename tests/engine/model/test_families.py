"""Adapters on every family of models that issue and documentation name: the same few laws, on tiny models of their architectures."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from engine import LoraConfig, PeftModel, get_peft_model
from engine.model.targets import DEFAULT_TARGETS
from tests.support.families import family, inputs

FAMILIES = {
    **dict.fromkeys(["Llama", "Qwen2", "Qwen3", "Gemma3Text", "Mistral", "Phi", "Phi3", "OPT", "Mixtral", "Qwen3Moe"], "ForCausalLM"),
    "GPT2": "LMHeadModel", "T5": "ForConditionalGeneration", "Bart": "ForConditionalGeneration", "ViT": "ForImageClassification",
    "Bert": "ForMaskedLM", "Roberta": "ForSequenceClassification", "DebertaV2": "ForTokenClassification",
}
EXPERTS = {"Mixtral", "Qwen3Moe"}          # their experts are parameters of three axes
WITHOUT_DEFAULT = {"Phi3", "Qwen3Moe"}     # PEFT knows none
CASES = [(name, targets) for name in FAMILIES for targets in ("default", "all-linear", "experts")
         if not (targets == "default" and name in WITHOUT_DEFAULT or targets == "experts" and name not in EXPERTS)]
cases = pytest.mark.parametrize(("name", "targets"), CASES, ids=["·".join(case) for case in CASES])


@cache
def made(name: str) -> nn.Module:
    return family(name, FAMILIES[name])


def base(name: str) -> nn.Module:
    return copy.deepcopy(made(name))


def settings(targets: str) -> dict:
    if targets == "experts":
        return {"target_modules": ["o_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    return {"target_modules": None if targets == "default" else targets}


def adapted(name: str, targets: str) -> PeftModel:
    """The family's model with an adapter that does something."""
    torch.manual_seed(1)
    return get_peft_model(base(name), LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, **settings(targets))).eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(model)).logits


@cases
def test_its_layers_are_found(name, targets):
    peft, plain = adapted(name, targets), made(name)
    linear = [path for path, module in plain.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    if targets == "default":
        names = DEFAULT_TARGETS[plain.config.model_type]
        assert set(peft.adapted) == {path for path in linear if path.rpartition(".")[2] in names}
    elif targets == "all-linear":
        fused = {path for path, _ in plain.named_parameters() if name in EXPERTS and (".experts." in path or path.endswith("mlp.gate.weight"))}
        assert set(peft.adapted) == fused | {path for path in linear if plain.get_submodule(path) is not plain.get_output_embeddings()}
    else:
        assert {path.rpartition("layers.0.")[2] for path in peft.adapted if "layers.0." in path} == {
            "self_attn.o_proj", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"}


@cases
def test_running_equals_merging_and_leaving_gives_the_base_back(name, targets):
    peft, plain = adapted(name, targets), made(name)
    running, before = logits(peft), logits(plain)
    assert (running - before).abs().max() > 1e-2
    peft.merge_adapter()
    torch.testing.assert_close(logits(peft), running, atol=1e-4, rtol=1e-4)
    peft.unmerge_adapter()
    assert torch.equal(logits(peft), running)
    with peft.disable_adapter():
        assert torch.equal(logits(peft), before)
    back = peft.unload()
    assert {path: type(module) for path, module in back.named_modules()} == {path: type(module) for path, module in plain.named_modules()}
    assert back.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(tensor, plain.state_dict()[key]) for key, tensor in back.state_dict().items())
    assert len(list(back.parameters())) == len(list(plain.parameters())) and all(p.requires_grad for p in back.parameters())
    torch.testing.assert_close(logits(adapted(name, targets).merge_and_unload()), running, atol=1e-4, rtol=1e-4)


@cases
def test_its_file_brings_it_back(name, targets, tmp_path):
    peft = adapted(name, targets)
    peft.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base(name), tmp_path)
    assert again.load_report.complete, again.load_report.sentence()
    assert all(torch.equal(tensor, again.get_parameter(path)) for path, tensor in peft.named_parameters() if "lora_" in path)
    torch.testing.assert_close(logits(again), logits(peft))


@cases
def test_a_step_of_training_moves_the_adapter_alone(name, targets):
    peft, plain = adapted(name, targets), made(name)
    trained = {path: p for path, p in peft.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in path for path in trained)
    before = {path: p.detach().clone() for path, p in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    peft.train()(**inputs(peft)).logits.pow(2).mean().backward()
    optimizer.step()
    assert all(p.grad is None for p in peft.parameters() if not p.requires_grad)
    assert all(p.grad is not None and not torch.equal(p, before[path]) for path, p in trained.items())
    assert all(torch.equal(tensor, plain.state_dict()[key]) for key, tensor in peft.unload().state_dict().items())
