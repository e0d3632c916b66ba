"""Lily by dense arithmetic, and who shares what with whom."""

from __future__ import annotations

import torch

from engine import LilyConfig, get_peft_model
from tests.support.families import family, ids


def test_neighbours_share_a_and_all_of_a_kind_share_b():
    torch.manual_seed(1)
    model = get_peft_model(family("Llama", "ForCausalLM", num_hidden_layers=4), LilyConfig(
        target_modules=["q_proj", "v_proj"], r=3, stride_A=2, num_B=3, scaling=0.5, init_weights=False)).eval()
    of = {path.split(".")[2] + path[-6:]: layer.all_tensors("default") for path, layer in model.adapted.items()}
    for kind in ("q_proj", "v_proj"):
        first = [of[f"{n}{kind}"] for n in range(4)]
        assert first[0]["lily_A.weight"] is first[1]["lily_A.weight"] and first[2]["lily_A.weight"] is first[3]["lily_A.weight"]
        assert first[0]["lily_A.weight"] is not first[2]["lily_A.weight"]
        assert all(p["lily_B.weight"] is first[0]["lily_B.weight"] for p in first)
        assert len({id(p["lily_router.weight"]) for p in first}) == 4
    assert of["0q_proj"]["lily_B.weight"] is not of["0v_proj"]["lily_B.weight"]
    layer = model.adapted["model.layers.3.self_attn.q_proj"]
    p, x = layer.all_tensors("default"), torch.randn(2, 5, 32)
    h = x @ p["lily_A.weight"].T
    share = torch.softmax(h @ p["lily_router.weight"].T, -1).mean((0, 1))
    B = sum(g * b for g, b in zip(share, p["lily_B.weight"].chunk(3)))
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 0.5 * h @ B)


def test_what_is_shared_is_learned_once_and_counted_once():
    model = get_peft_model(family("Llama", "ForCausalLM", num_hidden_layers=3), LilyConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], r=2, stride_A=3))
    assert model.get_nb_trainable_parameters()[0] == 2 * 32 + 2 * 2 * 32 + 3 * 2 * 2
    model(input_ids=ids(), labels=ids()).loss.backward()
    assert model.adapted["model.layers.2.self_attn.q_proj"].all_tensors("default")["lily_B.weight"].grad.abs().sum() > 0
