"""AdaMSS: equal to PEFT in its start, output, merged weights and files, though it lies in memory as two tensors; its schedule; its errors."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from engine import AdamssConfig, get_peft_model
from engine.errors import UnsupportedLayer
from engine.methods.adamss import SubspaceSchedule
from tests.support.one import One, one



def schedule(settings: dict, grads: dict[str, list[float]]) -> SubspaceSchedule:
    """Of two layers with four clusters each, all entries 1, whose gradients are given cluster by cluster."""
    layers = {}
    for path, values in grads.items():
        owner = torch.tensor([0, 0, 1, 2, 3, 3])
        p = {"adamss_A": torch.ones(4, 1, 5, requires_grad=True), "adamss_B": torch.ones(6, 1, requires_grad=True),
             "adamss_owner": owner, "adamss_ranks": torch.ones(4, dtype=torch.long)}
        p["adamss_A"].grad = torch.tensor(values)[:, None, None].expand(4, 1, 5).clone()
        p["adamss_B"].grad = torch.tensor(values)[owner][:, None].clone()
        layers[path] = p
    return SubspaceSchedule(AdamssConfig(use_asa=True, **settings), layers)


def test_exactly_as_many_go_on_as_were_asked_for_over_all_layers():
    asa = schedule({"asa_target_subspaces": 3, "init_warmup": 0, "final_warmup": 4, "mask_interval": 2, "asa_schedule_exponent": 1.0},
                   {"a": [0.1, 0.9, 0.2, 0.8], "b": [0.3, 0.4, 0.7, 0.05]})
    asa.update_and_allocate(1)
    assert all(learning.all() for learning in asa.learning.values())           # not a step of dropping
    assert [asa.budget(step) for step in (0, 2, 4, 9)] == [8, 5, 3, 3]
    asa.update_and_allocate(2)
    assert {path: learning.tolist() for path, learning in asa.learning.items()} == {
        "a": [False, True, False, True], "b": [True, True, True, False]}
    asa.update_and_allocate(4)
    assert {path: learning.tolist() for path, learning in asa.learning.items()} == {
        "a": [False, True, False, True], "b": [False, False, True, False]}
    asa.layers["a"]["adamss_B"].sum().backward()               # what has stopped gets no gradient, what goes on does
    added = asa.layers["a"]["adamss_B"].grad - torch.tensor([0.1, 0.1, 0.9, 0.2, 0.8, 0.8])[:, None]
    torch.testing.assert_close(added.flatten(), torch.tensor([0.0, 0, 1, 0, 1, 1]))


def test_what_has_stopped_never_learns_again():
    asa = schedule({"asa_target_subspaces": 2, "init_warmup": 0, "final_warmup": 2, "mask_interval": 1, "asa_schedule_exponent": 9.0},
                   {"a": [0.1, 0.9, 0.2, 0.8]})
    asa.update_and_allocate(1)
    assert asa.learning["a"].tolist() == [False, True, False, True]
    for name in ("adamss_A", "adamss_B"):
        asa.layers["a"][name].data.mul_(3.0)                   # an optimizer that decays
        asa.layers["a"][name].grad.mul_(-9.0)
    asa.update_and_allocate(2)
    assert asa.learning["a"].tolist() == [False, True, False, True]
    assert asa.layers["a"]["adamss_A"][:, 0, 0].tolist() == [1, 3, 1, 3]
    assert asa.layers["a"]["adamss_B"].flatten().tolist() == [1, 1, 3, 1, 3, 3]


@pytest.mark.parametrize("learning", [True, False])
def test_on_a_convolution_with_its_bias(learning):
    layer = nn.Conv1d(3, 8, 3)
    peft, adapted = one(layer, AdamssConfig(r=4, num_subspaces=3))
    p, x = adapted.tensors("a0"), torch.randn(2, 3, 9, dtype=torch.float64)
    change = torch.zeros(8, 10, dtype=torch.float64)
    for row, owner, b in zip(p["adamss_rows"], p["adamss_owner"], p["adamss_B"]):
        change[row] = b @ p["adamss_A"][owner] @ p["adamss_newB"]
    expected = nn.functional.conv1d(x, layer.weight + change[:, :9].view(8, 3, 3), layer.bias + change[:, 9])
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected)
    torch.testing.assert_close(peft.merge_and_unload()(x), expected)


def test_without_scikit_learn_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match="scikit-learn is required for AdaMSS"):
        AdamssConfig()


ASA = {"use_asa": True, "init_warmup": 1, "final_warmup": 9}


@pytest.mark.parametrize(("wrong", "words"), [
    ({"init_weights": "zeros"}, "init_weights must be 'orthogonal' or None"), ({"r": 0}, "`r` should be a positive"),
    ({"num_subspaces": 0}, "`num_subspaces`"), ({"subspace_rank": -1}, "`subspace_rank`"), ({**ASA, "mask_interval": 0}, "`mask_interval`"),
    ({**ASA, "asa_target_subspaces": 0}, "`asa_target_subspaces`"), ({**ASA, "asa_schedule_exponent": 0.0}, "`asa_schedule_exponent`"),
    ({**ASA, "init_warmup": 9}, "`init_warmup` must be smaller than `final_warmup`")])
def test_impossible_settings(wrong, words):
    with pytest.raises(ValueError, match=words):
        AdamssConfig(**wrong)


def test_grouped_convolutions_are_refused():
    with pytest.raises(UnsupportedLayer, match="grouped convolution"):
        get_peft_model(One(nn.Conv1d(4, 4, 3, groups=2)), AdamssConfig(target_modules=["layer"]))
