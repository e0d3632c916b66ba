"""The sample flow on a tiny base: it teaches, listens, mixes, exports, says whether it worked, and never does a thing twice."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path

import pytest
import torch

from engine import LoraConfig, cli, events, get_peft_model, sample
from engine.checkpoint.save import save_adapter
from engine.errors import VerificationFailed
from engine.store.home import Home
from engine.terminal import Terminal
from engine.worker.run import JOBS
from tests.support.tiny import make_model


@pytest.fixture
def home(studio_home, base_folder, monkeypatch):
    """A home whose starter is the tiny base, and a sample that listens only briefly."""
    home = Home(studio_home).prepare()
    shutil.copytree(base_folder, home.starter)
    monkeypatch.setattr(sample, "LONGEST", 3)
    monkeypatch.setattr(sample, "QUESTIONS", 1)
    return home


@pytest.fixture
def taught_at_once(monkeypatch):
    """Training that takes no time: an adapter of random numbers, said to be better than nothing."""
    def job(spec, run):
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        save_adapter(get_peft_model(make_model(), config), "default", spec.out)
        digest = hashlib.sha256((Path(spec.out) / "adapter_model.safetensors").read_bytes()).hexdigest()
        yield events.Finished({"adapter": spec.out, "steps": 1, "error_before": 2.0, "error_after": job.after, "best_step": 1, "rows": 9,
                               "held_out": 1, "seconds": 0.1, "fingerprint": digest})

    job.after = 1.0
    monkeypatch.setitem(JOBS, "train", job)
    return job


def run(home):
    out = io.StringIO()
    code = sample.sample(home, Terminal(out), quick=True)
    return code, out.getvalue(), json.loads((home.runs / "sample-summary.json").read_text("utf-8"))


def test_the_whole_way_and_then_nothing_is_done_twice(home):
    code, printed, summary = run(home)
    assert code == 0 and summary["passed"] and summary["failures"] == []
    assert set(summary["adapters"]) == {"style", "shop"} and set(summary["answers"]) == {"style", "shop", "mix"}
    for result in summary["adapters"].values():
        assert result["error_after"] < result["error_before"] and f"{result['error_after']:.3f}" in printed
    assert summary["export"]["verified"] and "verified" in printed.splitlines()[-1]
    made = {p: p.stat().st_mtime_ns for p in home.root.rglob("*.safetensors")}

    code, printed, again = run(home)
    assert code == 0 and printed.count("is done already") == 3
    assert made == {p: p.stat().st_mtime_ns for p in home.root.rglob("*.safetensors")}
    assert again["adapters"] == summary["adapters"] and again["answers"] == summary["answers"]


def test_an_adapter_that_is_gone_is_taught_again(home, taught_at_once):
    _, _, summary = run(home)
    shutil.rmtree(summary["adapters"]["style"]["adapter"])
    code, printed, again = run(home)
    assert code == 0 and printed.count("is done already") == 2           # the other one, and the export: its inputs are the same
    assert again["adapters"] == summary["adapters"]


def test_something_of_the_persons_own_is_never_overwritten(home, taught_at_once):
    own = home.adapters / "pennywhistle-bakery"
    own.mkdir()
    (own / "mine.txt").write_text("keep")
    code, _, summary = run(home)
    assert code == 0 and [p.name for p in own.iterdir()] == ["mine.txt"]
    assert summary["adapters"]["shop"]["adapter"] == f"{own}-2"


def test_an_error_that_does_not_fall_is_a_failure_with_a_sentence(home, taught_at_once):
    taught_at_once.after = 2.0
    code, printed, summary = run(home)
    assert code == 1 and not summary["passed"] and printed.count("did not fall") == 2


def test_a_verification_that_fails_is_told_and_ends_with_one(home, taught_at_once, monkeypatch, capsys):
    def refuse(spec, run):
        raise VerificationFailed("The exported model is not what you heard.", do="Export it again.")
        yield

    monkeypatch.setitem(JOBS, "export", refuse)
    assert cli.main(["sample", "--quick", "--home", str(home.root)]) == 1
    assert "not what you heard" in capsys.readouterr().err


def test_a_pause_in_the_middle_says_how_to_go_on(home, taught_at_once, monkeypatch):
    monkeypatch.setitem(JOBS, "train", lambda spec, run: iter([events.Stopped("pause", True, 3)]))
    out = io.StringIO()
    assert sample.sample(home, Terminal(out)) == cli.PAUSED and out.getvalue().endswith("adapter-studio sample\n")
    monkeypatch.setitem(JOBS, "train", taught_at_once)
    assert run(home)[0] == 0
