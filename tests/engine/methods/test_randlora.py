"""RandLoRA against dense arithmetic, its lean gradient, and files with a copy of the bases for each layer."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engine import PeftModel, RandLoraConfig, get_peft_model
from engine.methods.randlora import Scaled
from tests.support.one import one


def dense(p, out: int, columns: int, scale: float) -> torch.Tensor:
    """Σ over bases and ranks, entry by entry; for the shorter side being the inputs. PEFT pairs rank and basis in two different orders."""
    short, long = sorted((out, columns))
    rank, bases = p["randlora_lambda"].shape
    inner = [p["randlora_lambda"][k, b] * p["randlora_A"][k, 0, :short] * p["randlora_gamma"][b] for k in range(rank) for b in range(bases)]
    outer = [p["randlora_B"][:long, b, k] for b in range(bases) for k in range(rank)]
    total = scale * sum(torch.outer(o, i) for o, i in zip(outer, inner, strict=True))
    return total if short == columns else total.T


@pytest.mark.parametrize("layer", [lambda: nn.Linear(6, 9), lambda: nn.Linear(9, 6), lambda: nn.Linear(6, 6)])
def test_running_is_dense_arithmetic_listening_and_learning(layer):
    layer = layer()
    peft, adapted = one(layer, RandLoraConfig(r=4, randlora_alpha=6))
    x = torch.randn(3, layer.in_features, dtype=torch.float64)
    expected = nn.functional.linear(x, layer.weight + dense(adapted.all_tensors("a0"), *layer.weight.shape, 6 / 4), layer.bias)
    for train, learning in ((True, True), (False, True), (False, False)):
        with torch.set_grad_enabled(learning):
            torch.testing.assert_close(peft.train(train)(x), expected)


def test_the_lean_gradient_is_the_gradient():
    A = torch.randn(3, 1, 5, dtype=torch.float64)
    scale, gamma = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 2), (2, 5)))
    assert torch.autograd.gradcheck(lambda s, g: Scaled.apply(A, s, g), (scale, gamma))


@pytest.mark.parametrize(("more", "odds"), [({"sparse": True}, 3.0), ({"very_sparse": True}, 8.0)])
def test_sparse_bases_have_three_values(more, odds):
    peft = get_peft_model(nn.Sequential(nn.Linear(64, 80)), RandLoraConfig(r=8, target_modules=["0"], **more))
    for basis in peft.shared_tensors("default").values():
        assert basis.unique().numel() == 3 and basis.std().item() == pytest.approx(1, abs=1e-4)
        assert (basis != 0).float().mean().item() == pytest.approx(1 / odds, rel=0.25)


def test_copies_of_the_bases_in_a_file_are_neither_needed_nor_unexpected(tmp_path):
    base = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 6))
    peft = get_peft_model(base, RandLoraConfig(r=4, target_modules=["0", "1"], init_weights=False))
    peft.save_pretrained(tmp_path)
    file, x = tmp_path / "adapter_model.safetensors", torch.randn(3, 6)
    tensors, expected = load_file(file), peft.eval()(x)
    assert sorted(k for k in tensors if k.endswith(("_A", "_B"))) == ["base_model.randlora_A", "base_model.randlora_B"]
    copies = {f"base_model.model.{i}.{k.rpartition('.')[2]}": t.clone() for i in "01" for k, t in tensors.items() if k.endswith(("_A", "_B"))}
    save_file({**tensors, **copies}, file)
    again = PeftModel.from_pretrained(peft.unload(), tmp_path)
    assert again.load_report.complete and not again.load_report.unexpected
    torch.testing.assert_close(again(x), expected)


def test_impossible_settings():
    with pytest.raises(ValueError, match="`r` should be a positive integer"):
        RandLoraConfig(r=0)
