"""ADAMSS against the package `peft`, beyond the common table."""

from __future__ import annotations

import copy
import warnings

import peft as oracle
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import engine
from engine import PeftModel, get_peft_model_state_dict
from engine.errors import WrongBase
from engine.methods.adamss import SubspaceSchedule

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
