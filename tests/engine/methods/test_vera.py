"""VeRA against dense arithmetic, and its frozen projections."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine import PeftModel, VeraConfig, get_peft_model
from engine.law import Site
from engine.methods.vera import METHOD
from tests.support.one import one


def dense(p, out: int, columns: int) -> torch.Tensor:
    return torch.diag(p["vera_lambda_b"]) @ p["vera_B"][:out] @ torch.diag(p["vera_lambda_d"]) @ p["vera_A"][:, :columns]


@pytest.mark.parametrize(("layer", "shape"), [(lambda: nn.Linear(6, 8), (4, 6)), (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 7))])
def test_running_is_dense_arithmetic_listening_and_learning(layer, shape):
    layer = layer()
    peft, adapted = one(layer, VeraConfig(r=5))
    p, x = adapted.all_tensors("a0"), torch.randn(shape, dtype=torch.float64)
    weight = layer.weight + dense(p, adapted.site.out, adapted.site.columns).view_as(layer.weight)
    expected = torch.func.functional_call(layer, {"weight": weight}, x)
    torch.testing.assert_close(peft(x), expected)
    torch.testing.assert_close(peft.train()(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(peft.eval()(x), expected)


def test_layers_of_all_sizes_share_one_pair_and_only_vectors_learn():
    peft = get_peft_model(nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 8)), VeraConfig(r=4, target_modules=["0", "1"]))
    shared = peft.shared_tensors("default")
    assert {k: tuple(t.shape) for k, t in shared.items()} == {"vera_A": (4, 6), "vera_B": (8, 4)}
    assert sorted(n.split(".")[-2] for n, q in peft.named_parameters() if q.requires_grad) == ["vera_lambda_b"] * 2 + ["vera_lambda_d"] * 2
    assert shared["vera_A"] is peft.adapted["0"].all_tensors("default")["vera_A"] is peft.adapted["1"].all_tensors("default")["vera_A"]


def test_the_seed_makes_the_projections_and_nothing_else_does():
    def projections(key: int) -> torch.Tensor:
        config = VeraConfig(r=4, target_modules=["0"], projection_prng_key=key)
        return get_peft_model(nn.Sequential(nn.Linear(6, 3)), config).shared_tensors("default")["vera_B"]

    before = torch.get_rng_state()
    specs = METHOD.shared(VeraConfig(r=4), [Site("0", "linear", 3, 6)])
    for spec in specs.values():
        spec.init(torch.empty(spec.shape))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(projections(1), projections(1)) and not torch.equal(projections(1), projections(2))


def test_a_file_that_holds_projections_is_believed_more_than_the_seed(tmp_path):
    """Also if the config says that they are not in it: the layers would otherwise mean something else."""
    peft = get_peft_model(nn.Sequential(nn.Linear(6, 3)), VeraConfig(r=4, target_modules=["0"], init_weights=False))
    with torch.no_grad():
        peft.shared_tensors("default")["vera_A"].mul_(2)      # as if drawn on another machine
    peft.save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"save_projection": true', '"save_projection": false'))
    x, expected = torch.ones(1, 6), peft.eval()(torch.ones(1, 6))
    torch.testing.assert_close(PeftModel.from_pretrained(peft.unload(), tmp_path)(x), expected)


def test_impossible_settings():
    with pytest.raises(ValueError, match="`r` should be a positive integer value but the value passed is 0"):
        VeraConfig(r=0)
    with pytest.raises(ValueError, match="grouped"):
        get_peft_model(nn.Sequential(nn.Conv1d(4, 4, 3, groups=2)), VeraConfig(r=4, target_modules=["0"]))
