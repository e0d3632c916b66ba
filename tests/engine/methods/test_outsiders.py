"""A method in somebody else's package: installed, it is used like any other, and a broken one breaks nothing else."""

from __future__ import annotations

import importlib
import json
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import engine
from engine import LoraConfig, PeftModel, get_peft_model
from engine.errors import BadAdapter, UnsupportedLayer
from engine.methods import registry
from engine.specs import TrainSpec, describe_fields
from tests.support.tiny import make_model

PROJECT = """
[project]
name = "scale-and-shift"
version = "1.0"

[project.entry-points."adapter_studio.methods"]
SSF = "scale_and_shift:METHOD"
"""

SOURCE = '''
"""SSF (Lian et al. 2022, arXiv 2210.08823): a layer's outputs are scaled and shifted one by one."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from engine.law import MapMethod, TargetedConfig, TensorSpec
from engine.specs.fields import knob


@dataclass
class SsfConfig(TargetedConfig):
    peft_type: ClassVar[str] = "SSF"

    shift: bool = knob(True, label="Shift", help="Learns what is added as well as what is multiplied.")
    spread: float = knob(0.02, label="Spread", term="spread", low=0, high=1, help="How far apart the scales begin.", advanced=True)


class Ssf(MapMethod):
    title = "Scale and shift"
    help = "Two numbers a channel: tiny files. Holds little."
    config = SsfConfig
    prefix = "ssf_"

    def refuses(self, cfg, site):
        return "SSF shifts, and this layer has no bias to shift." if cfg.shift and not site.has_bias else ""

    def acts_out(self, cfg, site):
        return True

    def turns_bias(self, cfg, site):
        return True

    def tensors(self, cfg, site):
        scale = TensorSpec((site.out,), lambda t: torch.nn.init.normal_(t, 1.0, cfg.spread))
        return {"ssf_scale": scale, **({"ssf_shift": TensorSpec((site.out,), torch.nn.init.zeros_)} if cfg.shift else {})}

    def turn_out(self, p, cfg, site, y):
        return y * p["ssf_scale"]

    def bias_delta(self, p, cfg, site, b0=None, W0=None):
        return p.get("ssf_shift")


METHOD = Ssf()
'''


def install(folder: Path, project: str, source: str) -> None:
    """What an installer leaves behind of such a package: the module, and its metadata beside it."""
    settings = tomllib.loads(project)["project"]
    name, version = settings["name"], settings["version"]
    (folder / f"{name.replace('-', '_')}.py").write_text(textwrap.dedent(source), encoding="utf-8")
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    groups = [f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items()) for group, entries in settings["entry-points"].items()]
    (metadata / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty place for packages, on the path; afterwards nothing of them is known any more."""
    modules = set(sys.modules)
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    registry._outsiders.cache_clear()
    yield folder
    registry._outsiders.cache_clear()
    registry._round.cache_clear()
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def ssf(site):
    install(site, PROJECT, SOURCE)
    return site


def test_a_config_in_a_folder_is_enough(ssf, tmp_path):
    """Nothing of the package is imported beforehand, as in the window and in its worker."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "SSF", "target_modules": ["first"], "spread": 0.5, "of_tomorrow": 1}))
    config = engine.PeftConfig.from_pretrained(tmp_path)
    assert type(config).__module__ == "scale_and_shift" and config.spread == 0.5 and config.target_modules == ["first"]


def test_it_appears_among_the_methods_with_its_form(ssf):
    about, = [m for m in registry.describe().methods if m["peft_type"] == "SSF"]
    assert about["title"] == "Scale and shift" and json.loads(json.dumps(about)) == about
    fields = {f["name"]: f for f in about["fields"]}
    assert {"shift", "spread", "target_modules"} <= fields.keys()
    assert fields["spread"] | {"label": "Spread", "low": 0, "high": 1, "type": "float", "default": 0.02, "advanced": True} == fields["spread"]
    assert fields["spread"].keys() == describe_fields(TrainSpec)[0].keys()          # what the form is built from


def test_it_trains_mixes_merges_and_comes_back(ssf, tmp_path):
    import scale_and_shift

    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, wanted = torch.randn(16, 6).double(), torch.randn(16, 3).double()
    peft = get_peft_model(base, scale_and_shift.SsfConfig(target_modules=["0", "2"]), "ssf", autocast_adapter_dtype=False)
    optimizer = torch.optim.Adam([p for p in peft.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(20):
        loss = (peft(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    peft.eval()
    peft.add_adapter("lora", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False), autocast_adapter_dtype=False)
    outputs = []
    for order in ({"lora": 0.8, "ssf": 0.5}, {"ssf": 0.5, "lora": 0.8}):
        peft.set_adapter(order)
        outputs.append(peft(x))
        peft.merge_adapter()
        torch.testing.assert_close(peft(x), outputs[-1])
        peft.unmerge_adapter()
    assert not torch.allclose(*outputs)    # a map turns what lies below it
    peft.set_adapter("ssf")
    expected = peft(x)
    as_lora = engine.to_lora(peft, "ssf", error=0.0)
    peft.save_pretrained(tmp_path, ["ssf"])
    plain = peft.unload()
    again = PeftModel.from_pretrained(plain, tmp_path / "ssf", "again")
    assert again.load_report.complete and again.peft_config["again"].spread == 0.02
    torch.testing.assert_close(again(x), expected)
    torch.testing.assert_close(again.merge_and_unload()(x), expected)
    assert as_lora.error < 1e-7


def test_it_sits_in_a_language_model_and_says_where_it_cannot(ssf):
    import scale_and_shift

    model = get_peft_model(make_model(), scale_and_shift.SsfConfig(target_modules="all-linear", shift=False))
    assert len(model.adapted) == 14
    with pytest.raises(UnsupportedLayer, match="no bias to shift"):
        get_peft_model(make_model(), scale_and_shift.SsfConfig(target_modules=["q_proj"]))


def test_registered_by_hand_it_needs_no_entry_point(site):
    (site / "scale_and_shift.py").write_text(SOURCE, encoding="utf-8")
    assert "SSF" not in registry.names()
    with pytest.raises(BadAdapter, match="Install the package"):
        registry.method("SSF")
    module = importlib.import_module("scale_and_shift")
    assert engine.register_method(module.METHOD) is module.METHOD is registry.method("SSF")
    with pytest.raises(ValueError, match="registered already"):
        engine.register_method(type("Other", (module.Ssf,), {})())


@pytest.mark.parametrize(("source", "why"), [("raise RuntimeError('a part is missing')", "a part is missing"), ("METHOD = 1", "something else")])
def test_a_broken_package_breaks_nothing_else(site, source, why):
    install(site, PROJECT, source)
    with pytest.warns(UserWarning, match=why):
        found = {m["peft_type"] for m in registry.describe().methods}
    assert "LORA" in found and "SSF" not in found
    with pytest.raises(BadAdapter, match=why):
        registry.method("SSF")


def test_nobody_takes_the_name_of_a_method_of_the_house(site):
    install(site, PROJECT.replace("SSF =", "LORA ="), SOURCE.replace('"SSF"', '"LORA"'))
    assert registry.method("LORA").config is LoraConfig
    with pytest.raises(ValueError, match="registered already"):
        engine.register_method(importlib.import_module("scale_and_shift").METHOD)
