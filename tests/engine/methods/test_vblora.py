"""VB-LoRA against dense arithmetic, and its small file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engine import PeftModel, VBLoRAConfig, get_peft_model
from engine.errors import BadAdapter
from tests.support.one import one


def mixture(logits: torch.Tensor, bank: torch.Tensor, k: int) -> torch.Tensor:
    """One piece, by hand: the k likeliest vectors by their share among themselves."""
    chosen = sorted(range(len(logits)), key=lambda i: -logits[i].item())[:k]
    shares = torch.stack([logits[i] for i in chosen]).exp()
    return sum(share * bank[i] for share, i in zip(shares / shares.sum(), chosen, strict=True))


def test_running_is_dense_arithmetic():
    layer = nn.Linear(6, 8)
    peft, adapted = one(layer, VBLoRAConfig(r=3, num_vectors=7, vector_length=2, topk=3))
    p, x = adapted.all_tensors("a0"), torch.randn(4, 6, dtype=torch.float64)
    A = torch.stack([torch.cat([mixture(p["vblora_logits_A"][r, i], p["vblora_vector_bank"], 3) for i in range(3)]) for r in range(3)])
    B = torch.stack([torch.cat([mixture(p["vblora_logits_B"][i, r], p["vblora_vector_bank"], 3) for i in range(4)]) for r in range(3)], dim=1)
    torch.testing.assert_close(peft(x), nn.functional.linear(x, layer.weight + B @ A, layer.bias))


@pytest.mark.parametrize(("vectors", "kind"), [(200, torch.uint8), (300, torch.int16), (40_000, torch.int32)])
def test_the_small_file(vectors, kind, tmp_path):
    config = VBLoRAConfig(r=2, num_vectors=vectors, vector_length=2, topk=3, save_only_topk_weights=True, target_modules=["0"])
    peft = get_peft_model(nn.Sequential(nn.Linear(6, 8)), config)
    peft.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {k.rpartition(".")[2]: (t.dtype, tuple(t.shape)) for k, t in tensors.items()} == {
        "vblora_vector_bank": (torch.float32, (vectors, 2)),
        "vblora_logits_A_topk_indices": (kind, (2, 3, 3)), "vblora_logits_A_topk_weights": (torch.float32, (2, 3, 2)),
        "vblora_logits_B_topk_indices": (kind, (4, 2, 3)), "vblora_logits_B_topk_weights": (torch.float32, (4, 2, 2))}
    x, expected = torch.ones(1, 6), peft.eval()(torch.ones(1, 6))
    again = PeftModel.from_pretrained(peft.unload(), tmp_path)
    assert again.load_report.complete and not again.load_report.unexpected
    torch.testing.assert_close(again(x), expected)
    again.save_pretrained(tmp_path / "again")                 # and stored once more it is still the same
    torch.testing.assert_close(PeftModel.from_pretrained(again.unload(), tmp_path / "again")(x), expected)


def small(folder, **changes) -> nn.Module:
    config = VBLoRAConfig(r=2, num_vectors=9, vector_length=2, save_only_topk_weights=True, target_modules=["0"])
    peft = get_peft_model(nn.Sequential(nn.Linear(6, 8)), config)
    peft.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    save_file({k: changes.get(k.rpartition(".")[2], t) for k, t in load_file(file).items() if changes.get(k.rpartition(".")[2], t) is not None}, file)
    return peft.unload()


def test_a_small_file_cannot_be_taught_further(tmp_path):
    again = PeftModel.from_pretrained(small(tmp_path), tmp_path, is_trainable=True)
    with pytest.raises(RuntimeError, match="Found infinity values in VB-LoRA logits"):
        again(torch.ones(1, 6))


def test_vectors_that_the_bank_does_not_have(tmp_path):
    base = small(tmp_path, vblora_logits_A_topk_indices=torch.full((2, 3, 2), 9, dtype=torch.uint8))
    with pytest.raises(BadAdapter, match="places that a layer does not have"):
        PeftModel.from_pretrained(base, tmp_path)


def test_half_of_the_small_form_is_reported(tmp_path):
    again = PeftModel.from_pretrained(small(tmp_path, vblora_logits_B_topk_weights=None), tmp_path)
    assert not again.load_report.complete
    assert again.load_report.missing == ["base_model.model.0.vblora_logits_B"]
    assert again.load_report.unexpected == ["base_model.model.0.vblora_logits_B_topk_indices"]


def test_impossible_settings():
    for name in ("r", "topk"):
        with pytest.raises(ValueError, match="should be a positive integer value"):
            VBLoRAConfig(**{name: 0})
    with pytest.raises(ValueError, match="holds only 3 vectors"):
        VBLoRAConfig(topk=4, num_vectors=3)
    for length, side in ((4, "in_features"), (3, "out_features")):
        with pytest.raises(ValueError, match=f"`{side}` . must be divisible by `vector_length` {length}"):
            get_peft_model(nn.Sequential(nn.Linear(6, 8)), VBLoRAConfig(vector_length=length, target_modules=["0"]))
