"""Hot swap: what the model computes afterwards is what the other adapter computes; settings, files and merges stay true to it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from engine import (IA3Config, LoHaConfig, LoraConfig, OFTConfig, PeftModel, VeraConfig, get_peft_model, get_peft_model_state_dict, hotswap_adapter,
                    hotswap_adapter_from_state_dict, inject_adapter_in_model, prepare_model_for_compiled_hotswap)
from engine.errors import WrongBase
from tests.support.tiny import make_model

IDS = torch.arange(3, 19)[None]
KINDS = {
    "plain": (LoraConfig, {}), "rank": (LoraConfig, {"r": 2}), "alpha": (LoraConfig, {"lora_alpha": 3}), "larger": (LoraConfig, {"r": 6}),
    "rslora": (LoraConfig, {"r": 2, "use_rslora": True}),
    "pattern": (LoraConfig, {"r": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}}),
    "fewer": (LoraConfig, {"target_modules": ["q_proj"]}), "loha": (LoHaConfig, {}), "oft": (OFTConfig, {"r": 0, "oft_block_size": 4}),
    "ia3": (IA3Config, {}), "vera": (VeraConfig, {}), "dora": (LoraConfig, {"use_dora": True})}


def config(kind: str, **more):
    cls, settings = KINDS[kind]
    start = {"ia3": "init_ia3_weights", "lora": "init_lora_weights"}.get(cls.__name__.removesuffix("Config").lower(), "init_weights")
    rank = {} if kind == "ia3" else {"r": 4}
    targets = {"target_modules": ["q_proj", "v_proj"], **({"feedforward_modules": []} if kind == "ia3" else {})}
    return cls(**{**rank, **targets, start: False, "task_type": "CAUSAL_LM", **settings, **more})


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def saved(folder, kind: str, seed: int = 1):
    torch.manual_seed(seed)
    model = get_peft_model(make_model(), config(kind)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.stack.changed()
    model.save_pretrained(folder)
    return logits(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_swapped_model_is_the_other_one(kind, tmp_path):
    expected = saved(tmp_path / "next", kind)
    model = get_peft_model(make_model(), config(kind if kind in ("loha", "oft", "ia3", "vera", "dora") else "plain")).eval()
    assert not torch.allclose(logits(model), expected)
    before = {id(p) for p in model.parameters()}
    hotswap_adapter(model, tmp_path / "next", "default")
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    if kind != "larger":
        assert {id(p) for p in model.parameters()} == before   # in place: a compiled model stays compiled
    model.save_pretrained(tmp_path / "again")                  # the settings are the new one's
    torch.testing.assert_close(logits(PeftModel.from_pretrained(make_model(), tmp_path / "again").eval()), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, atol=1e-5, rtol=1e-5)


def test_back_and_forth(tmp_path):
    first, second = saved(tmp_path / "a", "rank", 1), saved(tmp_path / "b", "larger", 2)
    model = PeftModel.from_pretrained(make_model(), tmp_path / "a").eval()
    for folder, expected in (("b", second), ("a", first), ("b", second)):
        hotswap_adapter(model, tmp_path / folder, "default")
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)


def test_from_tensors_and_in_a_model_that_was_injected_into(tmp_path):
    expected = saved(tmp_path, "plain")
    state = get_peft_model_state_dict(PeftModel.from_pretrained(make_model(), tmp_path))
    model = inject_adapter_in_model(config("plain"), make_model())
    hotswap_adapter_from_state_dict(model, state, "default", config("plain"))
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    own = {key.replace(".weight", ".default.weight"): tensor for key, tensor in state.items()}     # as the model itself calls them
    other = get_peft_model(make_model(), config("plain")).eval()
    hotswap_adapter_from_state_dict(other, own, "default", config("plain"))
    torch.testing.assert_close(logits(other), expected, atol=1e-5, rtol=1e-5)


def refused(model, folder, error, words):
    before, values = logits(model), {key: t.clone() for key, t in model.state_dict().items()}
    settings = model.peft_config["default"].to_dict()
    with pytest.raises(error, match=words):
        hotswap_adapter(model, folder, "default")
    assert torch.equal(logits(model), before) and model.peft_config["default"].to_dict() == settings
    assert all(torch.equal(t, values[key]) for key, t in model.state_dict().items())


def test_what_cannot_be_swapped_changes_nothing(tmp_path):
    saved(tmp_path / "plain", "plain"), saved(tmp_path / "loha", "loha"), saved(tmp_path / "dora", "dora")
    model = get_peft_model(make_model(), config("plain")).eval()
    refused(model, tmp_path / "loha", ValueError, "one kind")
    refused(model, tmp_path / "dora", ValueError, "one kind")
    refused(get_peft_model(make_model(), config("fewer")).eval(), tmp_path / "plain", RuntimeError, "unexpected keys")
    refused(get_peft_model(make_model(hidden=32), config("plain")).eval(), tmp_path / "plain", WrongBase, "sizes")
    with pytest.raises(ValueError, match="no adapter"):
        hotswap_adapter(model, tmp_path / "plain", "nobody")
    model.merge_adapter()
    refused(model, tmp_path / "plain", ValueError, "merged")


# --- room for what is to come ---

class Various(nn.Module):
    """One layer of each kind that LoRA sits in."""

    def __init__(self):
        super().__init__()
        self.words, self.conv, self.groups = nn.Embedding(10, 8), nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 8, 1, groups=2)
        self.out = nn.Linear(8, 5)

    def forward(self, ids):
        return self.out(self.groups(self.conv(self.words(ids).transpose(1, 2))).transpose(1, 2))


def test_filling_up_changes_nothing_but_the_ranks():
    targets = ["words", "conv", "groups", "out"]
    model = get_peft_model(Various(), LoraConfig(r=2, lora_alpha=3, target_modules=targets, init_lora_weights=False, rank_pattern={"conv": 4}))
    ids = torch.arange(10)[None]
    expected = model(ids)
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    torch.testing.assert_close(model(ids), expected)
    sizes = {path: max(min(t.shape[:2]) for t in layer.tensors("default").values()) for path, layer in model.adapted.items()}
    assert all(8 in t.shape or 4 in t.shape for layer in model.adapted.values() for t in layer.tensors("default").values()), sizes
    assert model.peft_config["default"].r == 8
    torch.testing.assert_close(model.merge_and_unload()(ids), expected)


def test_every_smaller_one_finds_room_in_place(tmp_path):
    expected = {kind: saved(tmp_path / kind, kind) for kind in ("rank", "larger", "alpha", "rslora", "pattern", "fewer")}
    model = get_peft_model(make_model(), config("rank")).eval()
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    before = {id(p) for p in model.parameters()}
    for kind, logits_of_it in expected.items():
        hotswap_adapter(model, tmp_path / kind, "default")
        torch.testing.assert_close(logits(model), logits_of_it, atol=1e-5, rtol=1e-5)
        assert {id(p) for p in model.parameters()} == before


def test_room_that_cannot_be_made_is_refused():
    model = get_peft_model(make_model(), config("larger")).eval()
    before = logits(model)
    with pytest.raises(ValueError, match="not possible"):
        prepare_model_for_compiled_hotswap(model, target_rank=4)
    assert torch.equal(logits(model), before) and model.peft_config["default"].r == 6
    with pytest.raises(ValueError, match="No adapter layers"):
        prepare_model_for_compiled_hotswap(make_model(), target_rank=4)


def test_a_compiled_model_is_too_late():
    model = torch.compile(get_peft_model(make_model(), config("plain")))
    with pytest.raises(ValueError, match="before"):
        prepare_model_for_compiled_hotswap(model, target_rank=8)
    with pytest.raises(ValueError, match="check_compiled"):
        prepare_model_for_compiled_hotswap(model, target_rank=8, check_compiled="perhaps")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*hotswap")
        prepare_model_for_compiled_hotswap(model, target_rank=8, check_compiled="ignore")
    with pytest.warns(UserWarning, match="already compiled"):
        prepare_model_for_compiled_hotswap(model, target_rank=8, check_compiled="warn")


def test_configs_are_prepared_too():
    model, coming = get_peft_model(make_model(), config("rank")), {"a": config("pattern"), "b": config("rank")}
    prepare_model_for_compiled_hotswap(model, target_rank=8, config=coming)
    assert {c.r for c in coming.values()} == {8} and coming["a"].rank_pattern == {"q_proj": 8}
