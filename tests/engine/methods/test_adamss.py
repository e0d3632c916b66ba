"""AdaMSS: equal to PEFT in its start, output, merged weights and files, though it lies in memory as two tensors; its schedule; its errors."""

from __future__ import annotations

import copy
import sys
import warnings

import peft as oracle
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import engine
from engine import AdamssConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from engine.errors import UnsupportedLayer, WrongBase
from engine.methods.adamss import SubspaceSchedule
from tests.support.one import One, one

FORMS = {"ranks of two": {"r": 4, "num_subspaces": 3, "subspace_rank": 2, "init_weights": None},
         "ranks by need": {"num_subspaces": 5, "subspace_rank": 3, "use_dynamic_rank": True, "svd_threshold": 0.3, "init_weights": None},
         "more clusters than rows": {"r": 5, "num_subspaces": 20, "random_seed": 3, "init_weights": False},
         "without effect": {"r": 5, "num_subspaces": 4}}


class Two(nn.Module):
    def __init__(self, bias: bool = True):
        super().__init__()
        self.first, self.second = nn.Linear(12, 8, bias=bias), nn.Linear(12, 8, bias=bias)

    def forward(self, x):
        return self.first(x) + self.second(x)


def pair(bias: bool = True, **settings):
    """(base, ours, PEFT's, input) from the same seed."""
    torch.manual_seed(1)
    base, x, tuned = Two(bias), torch.randn(6, 12), []
    for package in (engine, oracle):
        torch.manual_seed(5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned.append(package.get_peft_model(copy.deepcopy(base), package.AdamssConfig(target_modules=["first", "second"], **settings)))
    return base, *tuned, x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_as_in_peft_in_all_but_its_shape_in_memory(form, bias, tmp_path):
    base, ours, theirs, x = pair(bias, **FORMS[form])
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=0)
    ours.save_pretrained(tmp_path / "ours"), theirs.save_pretrained(tmp_path / "theirs")
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs")]
    assert files[0].keys() == files[1].keys()
    for name in files[0]:
        torch.testing.assert_close(files[0][name], files[1][name], atol=1e-6, rtol=0)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "theirs")
    assert again.load_report.complete, again.load_report.sentence()
    torch.testing.assert_close(again(x), theirs(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(oracle.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours")(x), theirs(x), atol=1e-6, rtol=0)
    merged = [tuned.merge_and_unload().state_dict() for tuned in (ours, theirs)]
    for name in merged[0]:
        torch.testing.assert_close(merged[0][name], merged[1][name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"use_asa": True, "asa_target_subspaces": 3, "init_warmup": 1, "final_warmup": 4, "mask_interval": 4}],
                         ids=["all clusters", "three go on"])
def test_training_takes_the_steps_that_it_takes_in_peft(settings):
    """With decay and momentum, which must not move what has stopped. PEFT lets one less go on than it is told (see below)."""
    steps, tuned = 9, []
    for package in (engine, oracle):
        more = {"asa_target_subspaces": 4} if package is oracle and settings else {}
        _, ours, theirs, x = pair(**FORMS["ranks of two"], **{**settings, **more})
        model = ours if package is engine else theirs
        learned = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=0.05, weight_decay=0.2)
        allocate = model.base_model.update_and_allocate if package is oracle else SubspaceSchedule(
            model.peft_config["default"], {path: layer.tensors("default") for path, layer in model.adapted.items()}).update_and_allocate
        for step in range(steps):
            model(x).sin().sum().backward()
            optimizer.step()
            allocate(step)
            optimizer.zero_grad()
        tuned.append((package, model))
    ours, theirs = (package.get_peft_model_state_dict(model) for package, model in tuned)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0)


def test_what_is_left_empty_in_memory_stays_empty():
    _, ours, _, x = pair(**FORMS["more clusters than rows"] | {"subspace_rank": 3})
    optimizer = torch.optim.AdamW([p for p in ours.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        ours(x).sin().sum().backward()
        optimizer.step()
    p = ours.adapted["first"].tensors("default")
    assert p["adamss_ranks"].tolist() == [1] * 8               # each row is a cluster of its own
    assert p["adamss_A"][:, 0].all() and not p["adamss_A"][:, 1:].any()
    assert p["adamss_B"][:, 0].all() and not p["adamss_B"][:, 1:].any()


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


def test_another_base_is_noticed(tmp_path):
    """PEFT puts the rows in the wrong places without a word."""
    base, ours, _, _ = pair(**FORMS["ranks of two"])
    ours.save_pretrained(tmp_path)
    other = Two()
    nn.init.normal_(other.first.weight, generator=torch.Generator().manual_seed(0))
    with pytest.raises(WrongBase, match="fall into other groups"):
        PeftModel.from_pretrained(other, tmp_path)


def test_an_incomplete_file_is_reported():
    _, ours, _, _ = pair(**FORMS["ranks of two"])
    found = {name.removeprefix("base_model.model.first."): t for name, t in get_peft_model_state_dict(ours).items() if ".first." in name}
    tenant = ours.adapted["first"].tenants["default"]
    del found["adamss_B.1"]
    decoded = tenant.method.decode(found, tenant.config, tenant.site)
    assert decoded.keys() == {"adamss_newB"} and "adamss_A.0" in found


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
