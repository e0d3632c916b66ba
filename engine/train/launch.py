"""Several processes for one training: one for each graphics card, or as many as the plan says.

`together` starts them, passes on what the first one says, and ends all when one ends badly. It is a job like any other, so window, command
line and tests need to know nothing of it. A member lives as long as the pipe from its launcher: it cannot outlive it, however that ends.

A server's own launcher does as well, in a run folder that was made before:

    torchrun --nproc-per-node 2 -m engine.train.launch RUN_FOLDER
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import torch

import engine
from engine import events
from engine.errors import InvalidSpec, StudioError, WorkerDied, explain
from engine.specs import TrainSpec
from engine.specs import from_dict as spec_from_dict
from engine.store.record import record
from engine.store.runs import RunFolder
from engine.train.loop import train
from engine.train.team import Team
from engine.worker.protocol import Line

GRACE = 10.0                               # seconds that members have to end by themselves
SAID = (0, 1)                              # exit codes of a member that told how it ended, or whose pipe ended


def wanted(spec: TrainSpec) -> int:
    """How many processes this training takes here. Raises `InvalidSpec` for more than there are graphics cards to work on."""
    cards = torch.cuda.device_count()
    if spec.processes > cards > 0:
        sentence = f"{spec.processes} processes need {spec.processes} graphics cards, here {'is one' if cards == 1 else f'are {cards}'}."
        raise InvalidSpec(sentence, do="Set “Processes” to 0.", fields={"processes": sentence})
    return spec.processes or max(1, min(cards, spec.rows_per_step))


def together(spec: TrainSpec, run: RunFolder, size: int) -> Iterator[events.Event]:
    """`engine.train.loop.train` by ``size`` processes: the same events, result and errors. Raises `WorkerDied` when one of them dies."""
    members, inbox = [], queue.SimpleQueue()
    try:
        meeting = _meeting(size)
        for rank in range(size):
            members.append(_Member(rank, meeting, inbox))
        for member in members:
            member.send({"id": 1, "do": "train", "folder": str(run.path), "spec": replace(spec, processes=size).to_dict()})
        working = set(range(size))
        while working:
            rank, message = inbox.get()
            if message is None and rank not in working:
                continue                                       # it has said its last word
            if message is None or "failed" in message:         # a death comes before what the others say of the cut line
                dead = next((m for m in members if m.process.poll() not in (None, *SAID)), members[rank] if message is None else None)
                raise StudioError.from_dict(message["failed"]) if dead is None else dead.died()
            if "done" in message:
                working.discard(rank)
            elif "event" in message:
                yield events.from_dict(message["event"])
    finally:
        for member in members:
            member.hang_up()
        for member in members:
            member.end()


def command() -> list[str]:
    """How a member is started. A frozen program is its own interpreter and must honour ``--member`` as first argument."""
    return [sys.executable, "--member"] if getattr(sys, "frozen", False) else [sys.executable, "-P", "-m", "engine.train.launch"]


def _meeting(size: int) -> dict[str, str]:
    """The environment in which members find each other, on this machine alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = int(os.environ.get("OMP_NUM_THREADS") or psutil.cpu_count(logical=False) or 1)
    root = str(Path(engine.__file__).resolve().parent.parent)
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
            "OMP_NUM_THREADS": str(max(1, threads // size)), "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            **({"GLOO_SOCKET_IFNAME": loopback} if loopback else {}), **({"USE_LIBUV": "0"} if os.name == "nt" else {})}


class _Member:
    """One process and the pipes to it."""

    def __init__(self, rank: int, meeting: dict[str, str], inbox: queue.SimpleQueue):
        self.rank = rank
        self.process = subprocess.Popen(command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        env={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                                        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0))
        self._reader = threading.Thread(target=self._read, args=(inbox,), name=f"member {rank}", daemon=True)
        self._reader.start()

    def send(self, message: dict) -> None:
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise self.died() from error

    def _read(self, inbox: queue.SimpleQueue) -> None:
        try:
            with self.process.stdout as lines:
                for line in lines:
                    inbox.put((self.rank, json.loads(line)))
        except ValueError:                                     # it died within a word
            pass
        finally:
            inbox.put((self.rank, None))

    def died(self) -> WorkerDied:
        """The error that tells of this member's end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        code = self.process.returncode
        why = "The system or someone ended it; often the memory ran out." if code in (-9, 137) else f"It ended with code {code}."
        return WorkerDied(f"Process {self.rank + 1} of those that teach together ended unexpectedly.", why, "Go on with the training; what the last "
                          "checkpoint holds is kept.", exit_code=code)

    def hang_up(self) -> None:
        """Close the pipe to it: it ends at once."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def end(self) -> None:
        """Wait a little, then insist. Afterwards the process and its reader are gone."""
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(GRACE)


def main(argv: list[str]) -> int:
    """Entry of a member: of `together`'s without arguments, of another launcher's with the run folder."""
    if argv:
        run, team = RunFolder(argv[0]), Team.assemble()
        spec = replace(run.spec(), processes=team.size)
        job = partial(train, team=team)
        *_, last = record(job, spec, run) if team.leads else job(spec, run)
        if isinstance(last, events.Failed):
            return 1
        team.part()
        return 0
    line, inbox = Line.private(), queue.SimpleQueue()
    for name in ("SIGINT", "SIGHUP"):      # they mean the launcher, whose end is noticed by its pipe
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    line.listen(inbox.put, lambda: os._exit(1))
    message = inbox.get()
    try:
        team = Team.assemble()
        for event in train(spec_from_dict(message["spec"]), RunFolder(message["folder"]), team):
            if team.leads:
                line.write({"id": message["id"], "event": event.to_dict()})
    except Exception as error:
        line.fail(message["id"], explain(error))
        return 1
    team.part()
    line.write({"id": message["id"], "done": {}})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
