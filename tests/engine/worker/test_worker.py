"""The child process by its pipes alone: greets, survives any rubbish, ends when its parent does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from engine import events, specs
from engine.store.runs import RunFolder

FAKE_WORKER = str(Path(__file__).parents[2] / "support" / "fake_worker.py")


class Pipes:
    """A worker and its two pipes; a read that takes too long kills it, so no test can hang."""

    def __init__(self, log: Path):
        self.log = log
        with open(log, "ab") as stderr:
            self.process = subprocess.Popen([sys.executable, FAKE_WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)

    def write(self, *lines: bytes | dict):
        for line in lines:
            self.process.stdin.write(json.dumps(line).encode() + b"\n" if isinstance(line, dict) else line + b"\n")
        self.process.stdin.flush()

    def read(self) -> dict:
        guard = threading.Timer(20, self.process.kill)
        guard.start()
        try:
            return json.loads(self.process.stdout.readline())
        finally:
            guard.cancel()

    def close(self) -> int:
        self.process.stdin.close()
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self.process.stdout.close()


@pytest.fixture
def pipes(tmp_path):
    pipes = Pipes(tmp_path / "worker.log")
    assert pipes.read()["hello"]["pid"] == pipes.process.pid
    yield pipes
    if not pipes.process.stdin.closed:
        pipes.close()


def begun(run: RunFolder, count: int = 1) -> None:
    """Wait until a job has told so many events."""
    for _ in range(4000):
        if len(list(run.events())) >= count:
            return
        threading.Event().wait(0.005)
    raise AssertionError("the job did not begin")


json_values = strategies.recursive(strategies.none() | strategies.booleans() | strategies.integers() | strategies.text(max_size=5),
                                   lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(
                                       strategies.sampled_from(["id", "do", "spec", "folder", "kind", "x"]), inner, max_size=4), max_leaves=8)
rubbish = strategies.one_of(
    strategies.binary(min_size=1, max_size=60).map(lambda b: b.replace(b"\n", b" ")),
    json_values.map(lambda value: json.dumps(value).encode()),
    strategies.builds(lambda do, spec: json.dumps({"id": 5, "do": do, "spec": spec}).encode(),
                      strategies.sampled_from(["run", "say", "stop", "set-strengths", "open-chat", "describe-data", "import os"]), json_values),
    strategies.just(b"[" * 100_000))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=strategies.lists(rubbish, min_size=1, max_size=5), number=strategies.integers(10**6, 10**9))
def test_no_rubbish_ever_ends_it(pipes, lines, number):
    pipes.write(*lines, {"id": number, "do": "describe-data", "spec": {"data": "/nowhere"}})
    while (message := pipes.read())["id"] != number:
        assert set(message) <= {"id", "failed", "done", "event"}
    assert message["failed"]["code"] == "bad-data"
    assert pipes.process.poll() is None


def test_a_number_used_twice_is_refused(pipes):
    question = {"id": 1, "do": "open-chat", "spec": {"base": "b"}}
    pipes.write(question, question)
    assert sorted(next(iter(set(pipes.read()) - {"id"})) for _ in range(2)) == ["done", "failed"]


def test_a_job_is_carried_out_in_its_folder_and_its_end_told_on_the_pipe(pipes, tmp_path):
    run = RunFolder.create(tmp_path / "run", specs.TrainSpec("base", "steps=4", str(tmp_path / "out")))
    pipes.write({"id": 1, "do": "run", "folder": str(run.path)})
    message = pipes.read()
    assert message["id"] == 1 and message["done"]["event"] == "finished"
    assert [e.seq for e in run.events()] == list(range(1, 7)) and isinstance(run.outcome(), events.Finished)


def test_a_spec_that_is_no_job_or_cannot_be_read_fails_with_a_sentence(pipes, tmp_path):
    run = RunFolder.create(tmp_path / "run", specs.DescribeData("x"))
    pipes.write({"id": 1, "do": "run", "folder": str(run.path)}, {"id": 2, "do": "run", "folder": str(tmp_path / "none")})
    assert pipes.read()["failed"]["code"] == "invalid-spec"
    assert "damaged" in pipes.read()["failed"]["what"]


def test_hanging_up_pauses_the_running_job_and_ends_the_child(pipes, tmp_path):
    run = RunFolder.create(tmp_path / "run", specs.TrainSpec("base", "steps=100000 pace=0.005", str(tmp_path / "out")))
    pipes.write({"id": 1, "do": "run", "folder": str(run.path)}, {"id": 2, "do": "run", "folder": str(run.path)})
    begun(run, 4)
    assert pipes.close() == 0
    assert run.outcome().reason == "pause" and run.outcome().resumable
    assert sum(e.final for e in run.events()) == 1                                 # the second job was never begun


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_no_orphan_survives_its_parents_sudden_death(tmp_path):
    code = ("import subprocess, sys, os, time\n"
            f"child = subprocess.Popen([sys.executable, {FAKE_WORKER!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
            "child.stdout.readline(); print(child.pid, flush=True); os.kill(os.getpid(), 9)")
    out = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    import psutil

    try:
        psutil.Process(int(out.stdout)).wait(20)
    except psutil.NoSuchProcess:
        return


def test_a_hanging_child_is_ended_by_its_watchdog(tmp_path):
    """The job hears nothing, the parent is gone: faulthandler ends the process without asking Python."""
    run = RunFolder.create(tmp_path / "run", specs.TrainSpec("base", "hang", str(tmp_path / "out")))
    code = (f"import sys, runpy; sys.argv = [{FAKE_WORKER!r}]\n"
            "import engine.worker.__main__ as worker; worker.LAST_GRACE = 0.3\n"
            f"runpy.run_path({FAKE_WORKER!r}, run_name='__main__')")
    with open(tmp_path / "log", "wb") as log:
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                                 cwd=Path(__file__).parents[3])
        child.stdout.readline()
        child.stdin.write(json.dumps({"id": 1, "do": "run", "folder": str(run.path)}).encode() + b"\n")
        child.stdin.flush()
        begun(run)
        child.stdin.close()
        try:
            assert child.wait(20) == 1
        finally:
            child.kill()
            child.stdout.close()
    assert b"Timeout" in (tmp_path / "log").read_bytes()


def test_the_real_worker_greets_before_torch_is_there(tmp_path):
    code = ("import sys, runpy\nfrom engine.worker import protocol, __main__ as worker\nwrite = protocol.Line.write\n"
            "def spy(line, message):\n    write(line, {**message, 'torch': 'torch' in sys.modules})\n"
            "protocol.Line.write = spy\nworker._preload = lambda inbox: None\nworker.main()")
    with open(tmp_path / "log", "wb") as log:
        out = subprocess.run([sys.executable, "-c", code], input=b"", stdout=subprocess.PIPE, stderr=log, cwd=Path(__file__).parents[3])
    assert json.loads(out.stdout)["torch"] is False and out.returncode == 0
