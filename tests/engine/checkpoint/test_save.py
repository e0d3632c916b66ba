"""Each argument of `save_pretrained`, and state dicts of other places."""

from __future__ import annotations

import base64
import copy
import errno
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from engine import (LoraConfig, PeftModel, PromptTuningConfig, get_base_model_state_dict, get_peft_model, get_peft_model_state_dict,
                    set_base_model_state_dict)
from engine.errors import BadAdapter, Unreachable
from tests.support.tiny import make_model, save_base
from tests.support.web import hub_here

IDS = torch.arange(3, 19)[None]


def lora(**more) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM", **more})


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def two() -> PeftModel:
    model = get_peft_model(make_model(), lora())
    model.add_adapter("other", lora(r=3))
    return model


def test_default_lies_in_the_folder_and_others_below_it(tmp_path):
    two().save_pretrained(tmp_path / "new" / "folder")
    own = {"adapter_config.json", "adapter_model.safetensors"}
    assert files(tmp_path / "new" / "folder") == own | {f"other/{name}" for name in own} | {"README.md"}
    assert json.loads((tmp_path / "new/folder/adapter_config.json").read_text())["inference_mode"] is True


def test_only_what_is_selected(tmp_path):
    model = two()
    model.save_pretrained(tmp_path, selected_adapters=["other"])
    assert files(tmp_path) == {"README.md", "other/adapter_config.json", "other/adapter_model.safetensors"}
    again = PeftModel.from_pretrained(make_model(), tmp_path, subfolder="other")
    model.set_adapter("other")
    torch.testing.assert_close(logits(again), logits(model.eval()))


@pytest.mark.parametrize("wrong, error", [({"safe_serialization": False}, ValueError), ({"selected_adapters": ["nobody"]}, ValueError),
                                          ({"path_initial_model_for_weight_conversion": "nowhere"}, BadAdapter)], ids=["pickle", "name", "since"])
def test_what_cannot_be_written_leaves_nothing(wrong, error, tmp_path):
    with pytest.raises(error):
        two().save_pretrained(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="should be a directory"):
        two().save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_only_the_main_process_writes(tmp_path):
    two().save_pretrained(tmp_path / "out", is_main_process=False)
    assert not (tmp_path / "out").exists()


def test_values_of_another_state_dict_are_written(tmp_path):
    model = get_peft_model(make_model(), lora(modules_to_save=["lm_head"]))
    gathered = {key: tensor.clone() + 1 for key, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=gathered)
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    found = load_file(tmp_path / "adapter_model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[key], tensor + 1) for key, tensor in expected.items())
    assert all(torch.equal(t, found[key]) for key, t in get_peft_model_state_dict(model, gathered).items())


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"down_proj": 4}, "alpha_pattern": {"down_proj": 3}},
                                      {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"target_modules": ["embed_tokens", "q_proj"]}],
                         ids=["plain", "rslora", "patterns", "pissa", "olora", "embedding"])
def test_what_was_learned_since_the_start_is_an_ordinary_lora(settings, tmp_path):
    model = get_peft_model(make_model(), lora(**settings)).eval()
    model.save_pretrained(tmp_path / "start")
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.stack.changed()
    model.save_pretrained(tmp_path / "since", path_initial_model_for_weight_conversion=tmp_path / "start")
    again = PeftModel.from_pretrained(make_model(), tmp_path / "since").eval()
    assert again.load_report.complete and again.peft_config["default"].r == 4 and again.peft_config["default"].init_lora_weights is True

    deltas = {}
    for path, layer in model.adapted.items():
        tenant = layer.tenants["default"]
        now = {key: t.clone() for key, t in layer.tensors("default").items()}
        then = {key: start[f"base_model.model.{path}.{_live(layer, key)}"] for key in now}
        deltas[path] = _delta(tenant, now) - _delta(tenant, then)
    for path, layer in again.adapted.items():
        torch.testing.assert_close(_delta(layer.tenants["default"], layer.tensors("default")), deltas[path], atol=1e-5, rtol=1e-4)


class Experts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 8, 8))

    def forward(self, x):
        return torch.einsum("bi,eoi->beo", x, self.weight)


@pytest.mark.parametrize("make, where, x", [
    (lambda: torch.nn.Conv1d(8, 8, 3, groups=2), {"target_modules": ["0"]}, torch.randn(2, 8, 5)),
    (Experts, {"target_parameters": ["0.weight"], "target_modules": []}, torch.randn(2, 8))], ids=["groups", "experts"])
def test_what_was_learned_since_the_start_stays_with_its_group_or_expert(make, where, x, tmp_path):
    base = torch.nn.Sequential(make())
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, init_lora_weights=False, **where)).eval()
    model.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        began = model(x) - base(x)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter))
        model.save_pretrained(tmp_path / "since", path_initial_model_for_weight_conversion=tmp_path / "start")
        torch.testing.assert_close(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "since")(x), model(x) - began, atol=1e-4, rtol=1e-4)


def _live(layer, key: str) -> str:
    wanted = layer.tensors("default")[key]
    return next(name for name, tensor in layer.state_dict(keep_vars=True).items() if tensor is wanted)


def _delta(tenant, tensors) -> torch.Tensor:
    A, B = (next(t for key, t in tensors.items() if mark in key) for mark in ("A", "B"))
    law = getattr(tenant.method, "inner", tenant.method)     # a start is a law round LoRA's
    return law.scale(tenant.config, tenant.site) * B @ A


def test_what_began_otherwise_or_is_no_product_is_refused(tmp_path):
    model = get_peft_model(make_model(), lora())
    get_peft_model(make_model(), lora(r=3)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="not how this one began"):
        model.save_pretrained(tmp_path / "out", path_initial_model_for_weight_conversion=tmp_path / "other")
    dora = get_peft_model(make_model(), lora(use_dora=True))
    dora.save_pretrained(tmp_path / "dora")
    with pytest.raises(ValueError, match="without DoRA"):
        dora.save_pretrained(tmp_path / "out", path_initial_model_for_weight_conversion=tmp_path / "dora")
    assert not (tmp_path / "out").exists()


def test_the_base_s_weights_go_out_and_in_under_their_old_names():
    plain = make_model()
    model = get_peft_model(make_model(), lora(modules_to_save=["norm"], bias="all"))
    found = get_base_model_state_dict(model)
    assert found.keys() == plain.state_dict().keys() and all(torch.equal(t, plain.state_dict()[key]) for key, t in found.items())
    other = make_model(seed=5)
    done = set_base_model_state_dict(model, other.state_dict())
    assert not done.missing_keys and not done.unexpected_keys
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(other))
    before = {key: t.clone() for key, t in model.state_dict().items()}
    for wrong in ({"strange": torch.zeros(1), **other.state_dict()}, dict(list(other.state_dict().items())[1:])):
        with pytest.raises(RuntimeError, match="Missing keys"):
            set_base_model_state_dict(model, {key: t + 1 for key, t in wrong.items()})
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
    done = set_base_model_state_dict(model, {"strange": torch.zeros(1)}, strict=False)
    assert done.unexpected_keys == ["strange"] and set(done.missing_keys) == plain.state_dict().keys()
    assert get_base_model_state_dict(plain).keys() == plain.state_dict().keys()


def test_the_base_of_a_prompt_too():
    plain = make_model()
    model = get_peft_model(make_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert get_base_model_state_dict(model).keys() == plain.state_dict().keys()
    set_base_model_state_dict(model, make_model(seed=5).state_dict())
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(make_model(seed=5)))


def test_what_is_sent_is_the_adapter_and_nothing_else(tmp_path, monkeypatch):
    model, own = two(), {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    (tmp_path / "diary.txt").write_text("private")
    with hub_here(monkeypatch) as hub:
        address = model.push_to_hub("somebody/shop", commit_message="Bread", private=True, token="word", selected_adapters=["default"])
        assert address.startswith(hub.address) and address.endswith("/1")
        assert {authorization for _, _, authorization in hub.asked} == {"Bearer word"}
        made, sent = hub.posted[0][1][0], files_sent(hub)
        assert made["name"] == "shop" and made["organization"] == "somebody" and made["visibility"] == "private"
        assert hub.posted[-1][1][0]["value"]["summary"] == "Bread" and sent.keys() == own
        hub.posted.clear()
        model.save_pretrained(tmp_path, push_to_hub=True, repo_id="somebody/both", token="word", revision="spring")
        assert hub.posted[-1][0] == "/api/models/somebody/both/commit/spring"
        sent = files_sent(hub)
        hub.posted.clear()
        model.push_to_hub("somebody/shop", token="word", create_pr=True)
        assert "/api/models/somebody/shop/discussions" in [path for path, _ in hub.posted]                  # a proposal, and the files go there
        assert hub.posted[-1][0] == "/api/models/somebody/shop/commit/refs%2Fpr%2F7" and own <= files_sent(hub).keys()
    assert sent.keys() == own | {"other/adapter_config.json", "other/adapter_model.safetensors"}
    assert all((tmp_path / name).read_bytes() == content for name, content in sent.items())


def files_sent(hub) -> dict[str, bytes]:
    """Those of the last commit."""
    return {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in hub.posted[-1][1] if line["key"] == "file"}


def test_a_hub_that_cannot_be_reached_is_said(tmp_path):
    with pytest.raises(Unreachable, match="could not be sent"):
        two().push_to_hub("somebody/shop", token="secret-word")


def test_a_config_names_the_base_and_survives(tmp_path):
    from transformers import AutoModelForCausalLM

    base = save_base(tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora(), revision="v1")
    model.save_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base) and config["revision"] == "v1"


@pytest.mark.parametrize("written", range(4))
def test_a_disk_that_is_full_leaves_the_adapters_that_were_there(written, tmp_path, monkeypatch):
    """Whichever of the four files it is that finds no room any more."""
    two().save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = get_peft_model(make_model(seed=5), lora(r=4, lora_alpha=1))
    other.add_adapter("other", lora(r=5))
    room, sync = [written], os.fsync

    def full(handle: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
