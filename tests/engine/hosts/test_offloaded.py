"""Models that `accelerate` keeps in main memory or on the disk but for the layer that runs (``device_map``, ``cpu_offload``)."""

from __future__ import annotations

import accelerate
import pytest
import torch

import engine
from engine import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from engine.errors import CannotMerge
from tests.engine.test_every_kind import KINDS, LAYERS, OTHERS, base, logits

IN_LAYERS = {kind: make for kind, make in KINDS.items() if kind not in OTHERS or kind in ("adamss", "poly", "lily", "ln tuning", "words")} | {
    "copies": lambda: LoraConfig(**LAYERS, r=2, init_lora_weights=False, modules_to_save=["down_proj"])}
kinds = pytest.mark.parametrize("kind", IN_LAYERS)


def adapted(kind: str, model: torch.nn.Module) -> PeftModel:
    torch.manual_seed(3)
    config = IN_LAYERS[kind]()
    config.task_type = "CAUSAL_LM"
    return get_peft_model(model, config, "a").eval()


def elsewhere(model: torch.nn.Module) -> torch.nn.Module:
    accelerate.cpu_offload(model, execution_device="cpu")
    assert all(p.is_meta for p in model.parameters())
    return model


@kinds
@pytest.mark.parametrize("first", ["the base is sent away", "the adapter comes"])
def test_it_runs_merges_and_is_saved_as_if_it_were_here(kind, first):
    whole = adapted(kind, base())
    running, file = logits(whole, kind), get_peft_model_state_dict(whole, adapter_name="a")
    if first == "the adapter comes":
        peft = adapted(kind, base())
        logits(peft, kind)
        elsewhere(peft.base_model.model)
    else:
        peft = adapted(kind, elsewhere(base()))
    torch.testing.assert_close(logits(peft, kind), running)
    found = get_peft_model_state_dict(peft, adapter_name="a")
    assert found.keys() == file.keys() and all(torch.equal(found[key], file[key]) for key in file)
    try:
        peft.merge_adapter()
    except CannotMerge:
        return
    torch.testing.assert_close(logits(peft, kind), running, atol=1e-4, rtol=1e-4)
    peft.unmerge_adapter()
    torch.testing.assert_close(logits(peft, kind), running)
    with peft.disable_adapter():
        torch.testing.assert_close(logits(peft, kind), logits(base()))
    torch.testing.assert_close(logits(peft.merge_and_unload()), running, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora", "oft", "loha"])
def test_it_learns_what_it_learns_here(kind):
    losses = []
    for send in (lambda model: model, elsewhere):
        peft = adapted(kind, send(base())).train()
        logits(peft, kind, grad=True).pow(2).mean().backward()
        losses.append([p.grad for p in peft.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


def test_a_part_on_the_disk(tmp_path):
    from transformers import LlamaForCausalLM

    base().save_pretrained(tmp_path / "base")
    whole = adapted("dora", base())
    whole.save_pretrained(tmp_path / "adapter")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu",
              "model.layers.1": "disk"}
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base", device_map=places, offload_folder=tmp_path / "disk").eval()
    assert model.model.layers[1].self_attn.q_proj.weight.is_meta
    peft = engine.PeftModel.from_pretrained(model, tmp_path / "adapter" / "a")
    torch.testing.assert_close(logits(peft), logits(whole))
    torch.testing.assert_close(logits(peft.merge_and_unload()), logits(whole), atol=1e-4, rtol=1e-4)
