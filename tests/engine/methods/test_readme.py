"""The newcomer's exercise: the method that the document shows is a method, by every law of the house."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch

import engine
from engine.methods import registry
from tests.engine import test_laws as laws
from tests.support.methods import Row

README = Path(registry.__file__).with_name("README.md")
LAWS = [law for name, law in vars(laws).items() if name.startswith("test_") and {"method", "layer"} <= set(inspect.signature(law).parameters)]


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """The document's code as a module of its own, registered for the time of a test."""
    block, = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "lora_xs.py"
    file.write_text(block, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("newcomer_lora_xs", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    engine.register_method(module.METHOD)
    yield module
    registry._round.cache_clear()


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("test_"))
@pytest.mark.parametrize("layer", ["linear", "conv1D-transposed", "conv2d", "embedding"])
def test_it_keeps_the_laws(newcomer, monkeypatch, tmp_path, law, layer):
    monkeypatch.setitem(laws.METHODS, "newcomer", Row(""))
    monkeypatch.setattr(laws, "make_config", lambda method: newcomer.LoraXsConfig(r=3, alpha=5, target_modules=["first"]))
    given = {"method": "newcomer", "layer": layer, "dtype": torch.float64, "grad": False, "tmp_path": tmp_path}
    law(**{name: value for name, value in given.items() if name in inspect.signature(law).parameters})


def test_it_is_one_short_file_that_knows_the_base_of_methods_alone(newcomer):
    source = Path(newcomer.__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) < 70
    assert set(re.findall(r"^(?:from|import) (engine[\w.]*)", source, re.MULTILINE)) == {"engine.law", "engine.specs.fields"}
    assert "LORA_XS" in registry.names()
