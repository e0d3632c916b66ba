"""A folder becomes a model, or one sentence says why it cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from engine.bases.load import load_model, load_tokenizer
from engine.errors import BadModel


@pytest.fixture
def folder(base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base_folder, tmp_path / "base"))


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


@pytest.mark.parametrize("dtype", ["same", "float32", "bfloat16", "float16"])
def test_the_number_format_is_the_one_asked_for(base_folder: Path, dtype: str):
    model = load_model(base_folder, dtype=dtype)
    assert model.dtype == (torch.float32 if dtype == "same" else getattr(torch, dtype)) and not model.training


def test_two_loads_are_the_same_model(base_folder: Path):
    one, two = load_model(base_folder).state_dict(), load_model(base_folder).state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_a_tokenizer_always_has_a_padding_token(folder: Path):
    change(folder / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None


def test_missing_tensors_are_an_error_and_not_random_numbers(folder: Path):
    change(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(BadModel, match="not whole"):
        load_model(folder)


def test_tensors_of_another_shape_are_an_error(folder: Path):
    change(folder / "config.json", intermediate_size=80)
    with pytest.raises(BadModel):
        load_model(folder)


@pytest.mark.parametrize("extra", [{"model_type": "strange"}, {"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "code.Model"}}])
def test_a_model_of_an_unknown_kind_is_refused_and_its_code_never_runs(folder: Path, extra: dict):
    (folder / "code.py").write_text("raise SystemExit('the code ran')", encoding="utf-8")
    change(folder / "config.json", **extra)
    with pytest.raises(BadModel) as caught:
        load_model(folder)
    assert ("program code" in str(caught.value)) == ("auto_map" in extra)


def test_code_beside_a_model_of_a_known_kind_is_simply_not_used(folder: Path):
    (folder / "code.py").write_text("raise SystemExit('the code ran')", encoding="utf-8")
    change(folder / "config.json", auto_map={"AutoModelForCausalLM": "code.Model"})
    assert type(load_model(folder)).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_named(folder: Path, lost: str):
    (folder / lost).unlink()
    with pytest.raises(BadModel):
        load_model(folder)


def test_a_folder_without_tokenizer_is_named(folder: Path):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadModel, match="no tokenizer"):
        load_tokenizer(folder)


def test_a_damaged_tokenizer_is_named(folder: Path):
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BadModel):
        load_tokenizer(folder)


def test_a_cut_weights_file_is_named(folder: Path):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadModel, match="damaged"):
        load_model(folder)
