"""What the library finds, which adapter fits which model, and how an adapter comes in."""

from __future__ import annotations

import json
import shutil

import pytest

from engine.errors import BadAdapter
from engine.store.home import Home
from studio.core import catalogue as module
from studio.core.catalogue import Catalogue, base_name, modules
from tests.studio.kit import make_adapter, make_model, safetensors


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home").prepare()


def opened(home: Home) -> Catalogue:
    made = Catalogue(home)
    made.refresh()
    return made


def rewrite(folder, **config):
    """Change an adapter's config and forget its recipe."""
    (folder / "recipe.json").unlink(missing_ok=True)
    data = json.loads((folder / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(data))


def test_the_size_is_that_of_all_files(home):
    base = make_model(home)
    adapter = make_adapter(home, base)
    (base / "deeper").mkdir()
    (base / "deeper" / "words.txt").write_bytes(bytes(1000))
    found = opened(home)
    for thing, folder in ((found.models[0], base), (found.adapters[0], adapter)):
        assert thing.bytes == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_it_finds_models_adapters_and_what_cannot_be_used(home):
    make_adapter(home, make_model(home), "b")
    make_adapter(home, home.models / "Tiny-Instruct", "A")
    (home.adapters / "empty").mkdir()
    (home.adapters / ".part").mkdir()
    found = opened(home)
    assert [m.name for m in found.models] == ["Tiny-Instruct"]
    assert [a.name for a in found.adapters] == ["A", "b"]
    assert len(found.problems) == 1 and found.adapters_for(found.models[0]) == found.adapters


@pytest.mark.parametrize("how", ["fingerprint", "path", "hub name", "unknown name, same shapes"])
def test_what_fits(home, how):
    adapter = make_adapter(home, make_model(home))
    if how != "fingerprint":
        known = {"path": str(home.models / "Tiny-Instruct"), "hub name": "some-org/tiny-instruct"}
        rewrite(adapter, base_model_name_or_path=known.get(how, "org/renamed"))
    found = opened(home)
    assert found.misfit(found.adapters[0], found.models[0]) is None
    assert found.home_of(found.adapters[0]) is found.models[0]


@pytest.mark.parametrize("how", ["fingerprint of another", "names another of ours", "other shapes", "no such place"])
def test_what_does_not_fit_says_why(home, how):
    make_model(home, "Other", hidden=32)
    adapter = make_adapter(home, make_model(home), hidden=16 if how == "other shapes" else 32)
    if how == "fingerprint of another":
        (adapter / "recipe.json").write_text(json.dumps({"base_fingerprint": "0" * 64}))
    elif how == "names another of ours":
        rewrite(adapter, base_model_name_or_path="org/Other")
    else:
        rewrite(adapter, base_model_name_or_path="org/unknown")
    if how == "no such place":
        safetensors(adapter / "adapter_model.safetensors", {"base_model.model.lm_head.lora_A.weight": (4, 32),
                                                            "base_model.model.lm_head.lora_B.weight": (9, 4)})
    found = opened(home)
    model = found.model(home.models / "Tiny-Instruct")
    why = found.misfit(found.adapters[0], model)
    assert why and "Tiny-Instruct" in why and found.adapters[0].name in why
    assert (found.adapters[0] in found.strangers()) == (how != "names another of ours")


def test_unchanged_folders_are_not_read_again(home, monkeypatch):
    adapter = make_adapter(home, make_model(home))
    reads = []
    monkeypatch.setattr(module, "read_adapter", lambda p: reads.append(p.name) or original(p))
    original = __import__("engine.store.library", fromlist=["read_adapter"]).read_adapter
    found, told = Catalogue(home), []
    found.subscribe(lambda: told.append(1))
    found.refresh()
    found.refresh()
    assert reads == ["Shop answers"] and told == [1]
    safetensors(adapter / "adapter_model.safetensors", {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (2, 32)})
    found.refresh()
    assert reads == ["Shop answers"] * 2 and told == [1, 1]


def test_an_adapter_comes_in_whole_or_not_at_all(home, tmp_path):
    outside = tmp_path / "down" / "skill"
    shutil.copytree(make_adapter(home, make_model(home)), outside)
    shutil.rmtree(home.adapters / "Shop answers")
    (outside / "evil.py").write_text("x")
    found = opened(home)
    target = found.bring_in(outside)
    assert sorted(f.name for f in target.iterdir()) == ["adapter_config.json", "adapter_model.safetensors", "recipe.json"]
    found.refresh()
    assert found.bring_in(outside) == target and found.bring_in(target) == target
    (outside / "adapter_model.safetensors").write_bytes(b"\x80\x02pickle")
    with pytest.raises(BadAdapter):
        found.bring_in(outside)
    assert [p.name for p in home.adapters.iterdir()] == [target.name]


def test_modules_are_told_from_names_alone(home):
    adapter = make_adapter(home, make_model(home))
    q = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    safetensors(adapter / "adapter_model.safetensors", {
        **{q.format(layer, part): shape for layer in (10, 2) for part, shape in (("A", (4, 32)), ("B", (32, 4)))},
        "base_model.model.lm_head.modules_to_save.weight": (8, 8), "base_model.model.model.layers.2.mlp.hada_w1_a": (4, 4)})
    found = modules(opened(home).adapters[0])
    assert [(m.layer, m.name) for m in found] == [(2, "mlp"), (2, "self_attn.q_proj"), (10, "self_attn.q_proj"), (None, "lm_head")]
    assert found[1].parameters == 2 * 4 * 32 and dict(found[1].parts)["lora_A"] == (4, 32)


@pytest.mark.parametrize("written, said", [("org/Name", "Name"), ("/x/y/Name/", "Name"), ("C:\\m\\Name", "Name"), ("", "an unknown model")])
def test_base_names(home, written, said):
    adapter = make_adapter(home, make_model(home))
    rewrite(adapter, base_model_name_or_path=written)
    assert base_name(opened(home).adapters[0]) == said
