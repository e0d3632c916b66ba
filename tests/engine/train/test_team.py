"""Several processes are the same training: the same errors, the same adapter, the same requests, and they live and die together."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from engine.errors import BadData, InvalidSpec, WorkerDied
from engine.events import Evaluated, Finished, Note, Saved, Step
from engine.specs import TrainSpec
from engine.store.runs import RunFolder
from engine.train import launch, loop, train
from engine.train.team import Team

ROOT = Path(__file__).parents[3]


def of(kind, events):
    return [e for e in events if isinstance(e, kind)]


def weights(spec) -> dict:
    return load_file(Path(spec.out) / "adapter_model.safetensors")


def members() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "engine.train.launch" in " ".join(p.cmdline())]


@given(st.lists(st.integers(1, 999), max_size=40), st.integers(1, 5))
def test_every_row_falls_to_one_process_and_all_have_about_as_much(lengths, size):
    shares = [Team(rank, size).share(lengths) for rank in range(size)]
    assert sorted(i for share in shares for i in share) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths, default=0)
    assert Team().share(lengths) == list(range(len(lengths)))


def test_two_processes_teach_what_one_teaches(make_spec, tmp_path):
    """Ragged steps of four rows, and one of three: the sum over both, divided by what both learn."""
    alone, both = (make_spec(rows=19, method_config={"r": 4, "lora_dropout": 0.0}, out=str(tmp_path / name), processes=n, max_steps=8,
                             prompts=["What is 1 and 2?"], early_stop=False) for name, n in (("alone", 1), ("both", 2)))
    seen = [list(train(spec, RunFolder.create(tmp_path / f"run-{spec.processes}", spec))) for spec in (alone, both)]
    assert not members()
    for kind in (Step, Evaluated):
        first, second = ([(e.step, e.error) for e in of(kind, events)] for events in seen)
        assert [step for step, _ in first] == [step for step, _ in second] and len(first) > 2
        assert [error for _, error in second] == pytest.approx([error for _, error in first], rel=1e-5)
    assert [type(e) for e in seen[0] if not isinstance(e, Saved)] == [type(e) for e in seen[1] if not isinstance(e, Saved)]
    assert [n.text for n in of(Note, seen[1]) if "2 processes" in n.text]
    one, two = weights(alone), weights(both)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)


def test_interrupted_they_go_on_to_the_same_bytes_whoever_started_them(make_spec, tmp_path):
    """Dropout falls for each process in its own way, and in the same way again; torch's launcher starts the undisturbed ones."""
    settings = dict(method_config={"r": 4, "lora_dropout": 0.2}, checkpoint_seconds=0.0, processes=2, max_steps=8)
    straight, spec = make_spec(out=str(tmp_path / "straight"), **settings), make_spec(**settings)
    undisturbed, run = RunFolder.create(tmp_path / "a", straight), RunFolder.create(tmp_path / "b", spec)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "engine.train.launch"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(undisturbed.path)], check=True, capture_output=True, env=environment, cwd=ROOT, timeout=300)
    assert isinstance(undisturbed.outcome(), Finished)
    expected, seen = {e.step: e.error for e in of(Step, undisturbed.events())}, {}

    job = train(spec, run)
    for event in job:
        if isinstance(event, Step):
            seen[event.step] = event.error
            if event.step == 3:
                left = members()
                job.close()                # the pipes end, as when the launcher is killed
    assert len(left) == 2 and not members() and 3 <= max(seen) < 8
    shutil.copytree(run.path, tmp_path / "c")

    events = list(train(spec, run))
    assert of(Step, events)[0].step >= 3 and isinstance(events[-1], Finished)
    assert {e.step: e.error for e in of(Step, events)} | seen == expected
    assert (Path(spec.out) / "adapter_model.safetensors").read_bytes() == (Path(straight.out) / "adapter_model.safetensors").read_bytes()

    fewer = replace(spec, processes=1, out=str(tmp_path / "fewer"))
    events = list(train(fewer, RunFolder(tmp_path / "c")))
    assert [n for n in of(Note, events) if "1 process goes on with what 2 began" in n.text and n.level == "warning"]
    assert events[-1].result["steps"] == 8


FIRST = """
import json, os, sys
spec = json.loads(sys.stdin.readline())["spec"]
say = lambda message: print(json.dumps(message), flush=True)
if os.environ["RANK"] == "0":
    say({"event": {"event": "note", "text": str(spec["processes"])}})
    sys.stdin.read()                       # at work, until the pipe ends
"""


@pytest.mark.parametrize("second, error, says", [
    ('say({"failed": {"code": "bad-data", "what": "There is nothing to learn from."}})', BadData, "nothing to learn"),
    ("os.kill(os.getpid(), 9)", WorkerDied, "Process 2 .* memory"), ("sys.exit(3)", WorkerDied, "code 3"),
    ("""sys.stdout.write('{"event": {"ev'); sys.stdout.flush(); os.kill(os.getpid(), 9)""", WorkerDied, "Process 2 .* memory")])
def test_when_one_fails_all_end_and_its_sentence_is_said(make_spec, tmp_path, monkeypatch, second, error, says):
    monkeypatch.setattr(launch, "command", lambda: [sys.executable, "-c", f"{FIRST}else:\n    {second}"])
    spec, children = make_spec(processes=2), psutil.Process().children()
    told = []
    with pytest.raises(error, match=says):
        for event in train(spec, RunFolder.create(tmp_path / "run", spec)):
            told.append(event)
    assert [e.text for e in told] in ([], ["2"]) and psutil.Process().children() == children


def test_who_is_done_first_may_go_home_first(make_spec, tmp_path, monkeypatch):
    at_home = tmp_path / "at home"
    second = 'say({"done": {}})'
    first = FIRST.replace("sys.stdin.read()                       # at work, until the pipe ends",
                          f"\n    while not os.path.exists({str(at_home)!r}): pass\n    say({{'done': {{}}}})")
    monkeypatch.setattr(launch, "command", lambda: [sys.executable, "-c", f"{first}else:\n    {second}"])
    read = launch._Member._read

    def reading(self, inbox):
        read(self, inbox)
        at_home.touch() if self.rank else None     # only now does the first one say that it is done

    monkeypatch.setattr(launch._Member, "_read", reading)
    spec = make_spec(processes=2)
    assert [e.text for e in train(spec, RunFolder.create(tmp_path / "run", spec))] == ["2"]


def test_memory_that_runs_out_for_one_makes_all_take_less(make_spec, tmp_path, monkeypatch):
    """In this process, with the other one's word put in its mouth."""
    spec = make_spec(method_config={"r": 4})
    told = iter([None, {"code": "out-of-memory", "what": "The computer's memory ran out."}])

    def together(self, work):
        mine = work()
        if "_accumulate" in work.__code__.co_names and (problem := next(told, None)):
            raise loop.StudioError.from_dict(problem)
        return [mine]

    monkeypatch.setattr(Team, "together", together)
    events = list(loop.train(spec, RunFolder.create(tmp_path / "run", spec)))
    note, = [n for n in of(Note, events) if "Memory ran out" in n.text]
    assert note.step == 1 and isinstance(events[-1], Finished)


@pytest.mark.parametrize("settings", [{"processes": 5}, {"processes": -1}, {"processes": 65, "rows_per_step": 100}])
def test_nonsense_is_refused(make_spec, settings):
    with pytest.raises(InvalidSpec, match="rocesses"):
        make_spec(**settings).check()


def test_cards_are_what_counts_where_there_are_some(monkeypatch):
    spec = TrainSpec(base="b", data="d", out="o", rows_per_step=4)
    for cards, processes, expected in [(0, 0, 1), (0, 3, 3), (1, 0, 1), (2, 0, 2), (8, 0, 4), (8, 2, 2)]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda cards=cards: cards)
        assert launch.wanted(replace(spec, processes=processes)) == expected
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InvalidSpec, match="here is one"):
        launch.wanted(replace(spec, processes=2))


def test_no_process_is_missed_in_silence(monkeypatch):
    import accelerate

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "PartialState", lambda **settings: type("State", (), {"num_processes": 1, "process_index": 0}))
    with pytest.raises(loop.StudioError, match="only 1 came"):
        Team.assemble()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Team.assemble().size == 1
