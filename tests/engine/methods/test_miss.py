"""MiSS against dense arithmetic, its three kinds, and folders from the time when it was called Bone."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from engine import MissConfig, PeftConfig, PeftModel, get_peft_model
from engine.errors import UnsupportedLayer
from tests.support.one import one


@pytest.mark.parametrize("way", ["training", "gradients", "frozen"])
@pytest.mark.parametrize("r", [4, 5, 12])
def test_every_r_inputs_share_their_rows(way, r):
    layer = nn.Linear(12, 8)
    peft, adapted = one(layer, MissConfig(r=r))
    D, x = adapted.tensors("a0")["miss_block"].detach(), torch.randn(2, 5, 12, dtype=torch.float64)
    expected = layer(x) + sum(x[..., i, None] * D[i % r] for i in range(12))
    with torch.set_grad_enabled(way != "frozen"):
        torch.testing.assert_close(peft.train(way == "training")(x), expected)


@pytest.mark.parametrize("way", ["training", "gradients", "frozen"])
def test_a_convolution_shares_them_along_its_kernel(way):
    layer = nn.Conv1d(4, 8, 3, stride=2, dilation=2)
    peft, adapted = one(layer, MissConfig(r=5))
    D, x = adapted.tensors("a0")["miss_block"].detach(), torch.randn(2, 4, 11, dtype=torch.float64)
    dense = torch.stack([D[i % 5] for i in range(12)], 1).view(8, 4, 3)
    expected = layer(x) + F.conv1d(x, dense, stride=2, dilation=2)
    with torch.set_grad_enabled(way != "frozen"):
        torch.testing.assert_close(peft.train(way == "training")(x), expected)


@pytest.mark.parametrize("way", ["training", "gradients", "frozen"])
def test_mini_repeats_along_the_outputs(way):
    layer = nn.Linear(12, 8)
    peft, adapted = one(layer, MissConfig(r=4, mini_r=2, init_weights="mini"))
    D, x = adapted.tensors("a0")["miss_block"].detach(), torch.randn(5, 12, dtype=torch.float64)
    assert D.shape == (4, 2)
    dense = torch.stack([torch.stack([D[i % 4, o % 2] for i in range(12)]) for o in range(8)])
    with torch.set_grad_enabled(way != "frozen"):
        torch.testing.assert_close(peft.train(way == "training")(x), layer(x) + F.linear(x, dense))


@pytest.mark.parametrize("learning", [True, False])
def test_two_of_the_bat_kind_both_change_the_untouched_weight(learning):
    layer = nn.Linear(12, 8)               # PEFT's second one sees what the first has made of it
    peft, adapted = one(layer, MissConfig(r=4, init_weights="bat"), MissConfig(r=2, init_weights="bat"))
    peft.set_adapter({"a0": 1.0, "a1": 0.5})
    x, W = torch.randn(5, 12, dtype=torch.float64), layer.weight.detach()

    def dense(name: str, r: int) -> torch.Tensor:
        D, delta = adapted.tensors(name)["miss_block"].detach(), torch.empty_like(W)
        for o in range(0, 8, r):
            for i in range(0, 12, r):
                delta[o:o + r, i:i + r] = W[o:o + r, i:i + r] @ D[o // r] + D[o // r]
        return delta

    expected = layer(x) + F.linear(x, dense("a0", 4) + 0.5 * dense("a1", 2))
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected)


@pytest.mark.parametrize("settings", [{"r": 4}, {"r": 4, "init_weights": "bat"}])
def test_a_folder_called_bone_is_read(settings, tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 8))
    peft = get_peft_model(base, MissConfig(target_modules=["0"], **settings))
    with torch.no_grad():
        peft.adapted["0"].tensors("default")["miss_block"].normal_()
    x = torch.randn(5, 12)
    expected = peft.eval()(x)
    peft.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text()) | {"peft_type": "BONE"}
    (tmp_path / "adapter_config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in ("mini_r", "miss_dropout")}))
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file({k.replace(".miss_", ".bone_"): v for k, v in weights.items()}, tmp_path / "adapter_model.safetensors")
    assert isinstance(PeftConfig.from_pretrained(tmp_path), MissConfig)
    again = PeftModel.from_pretrained(peft.unload(), tmp_path)
    assert again.load_report.complete and not again.load_report.unexpected
    torch.testing.assert_close(again(x), expected)


@pytest.mark.parametrize(("settings", "phrase"), [({"r": 13}, "less than or equal to in_features"),
                                                  ({"r": 4, "mini_r": 3, "init_weights": "mini"}, "mini_r"),
                                                  ({"r": 5, "init_weights": "bat"}, "fully divisible")])
def test_layers_that_do_not_divide_are_refused(settings, phrase):
    with pytest.raises(UnsupportedLayer, match=phrase):
        get_peft_model(nn.Sequential(nn.Linear(12, 8)), MissConfig(target_modules=["0"], **settings))


@pytest.mark.parametrize(("settings", "phrase"), [({"r": 0}, "positive integer"), ({"mini_r": 0}, "positive integer"),
                                                  ({"init_weights": "gaussian"}, "Unknown initialization")])
def test_impossible_settings(settings, phrase):
    with pytest.raises(ValueError, match=phrase):
        MissConfig(**settings)
