"""The run folder: the one contract between whoever asks for a job and whoever does it.

``spec.json`` what is to be done · ``events.jsonl`` append-only, numbered · ``cancel`` / ``pause`` / ``sample`` / ``finish`` empty files
that ask for something between two steps · ``extend`` / ``slower`` numbers that were wished for · ``checkpoints/`` written atomically by
the job · ``outcome.json`` the final event. Resuming needs nothing but this folder.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from collections.abc import Iterator

from engine import events, specs
from engine.errors import StudioError
from engine.store.atomic import write_json, write_text

REQUESTS = ("cancel", "pause", "sample", "finish")


class RunFolder:
    """One job's folder. Reading is safe while another process writes."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    @classmethod
    def create(cls, path: Path | str, spec: specs.Spec) -> "RunFolder":
        """Make the folder for a new job; raises `FileExistsError` if there is one already."""
        run = cls(path)
        run.path.mkdir(parents=True)
        write_json(run.path / "spec.json", spec.to_dict())
        return run

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def spec(self) -> specs.Spec:
        """The job's spec. Raises `StudioError` if the folder holds none that can be read."""
        try:
            return specs.from_dict(json.loads((self.path / "spec.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError) as error:
            raise StudioError("This job's folder is damaged.", f"{self.path / 'spec.json'} cannot be read.", "Start the job anew.",
                              details=str(error)) from error

    # --- requests: files, so that they work across processes, machines and restarts ---

    def ask(self, request: str) -> None:
        """Ask the running job for ``cancel``, ``pause``, ``sample`` or ``finish`` (end now, and keep what there is)."""
        assert request in REQUESTS, request
        (self.path / request).touch()

    def asked(self, request: str) -> bool:
        return (self.path / request).exists()

    def clear(self, *requests: str) -> None:
        """Forget requests (all of them by default), e.g. before a resume."""
        for request in requests or REQUESTS:
            (self.path / request).unlink(missing_ok=True)

    # --- wishes: numbers that only grow, so that none is lost or heard twice, whenever the job is killed ---

    def extend(self, passes: float) -> None:
        """Wish for so many passes more; several wishes add up."""
        self._grow("extend", passes)

    @property
    def extended(self) -> float:
        """All passes that were wished for in addition to the plan."""
        return self._wished("extend")

    def slow_down(self) -> None:
        """Wish for half the learning speed from where the training goes on."""
        self._grow("slower", 1)

    @property
    def slowed(self) -> int:
        """How often the speed was to be halved."""
        return int(self._wished("slower"))

    def _grow(self, wish: str, more: float) -> None:
        write_text(self.path / wish, repr(self._wished(wish) + more))

    def _wished(self, wish: str) -> float:
        try:
            return float((self.path / wish).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0.0

    # --- events ---

    def events(self, after: int = 0) -> Iterator[events.Event]:
        """Events with ``seq`` > ``after``; a half-written last line is left for later."""
        try:
            with open(self.path / "events.jsonl", "rb") as file:
                for line in file:
                    if line.endswith(b"\n") and (event := _parse(line)) is not None and event.seq > after:
                        yield event
        except FileNotFoundError:
            return

    def outcome(self) -> events.Event | None:
        """The final event of the last attempt, or None while there is none (running, or killed)."""
        try:
            return _parse((self.path / "outcome.json").read_bytes())
        except OSError:
            return None


def _parse(line: bytes) -> events.Event | None:
    try:
        return events.from_dict(json.loads(line))
    except (ValueError, TypeError, AttributeError):
        return None                        # torn by a power cut, perhaps within a letter, or filled up with zeros


class EventLog:
    """Appends events to a run folder, numbering on from what is there. Use as a context manager; one writer at a time."""

    def __init__(self, run: RunFolder):
        self.run = run
        self.seq = max((e.seq for e in run.events()), default=0)
        path = run.path / "events.jsonl"
        torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
        self._file = open(path, "ab", buffering=0)
        if torn:
            self._file.write(b"\n")
        (run.path / "outcome.json").unlink(missing_ok=True)

    def write(self, event: events.Event) -> events.Event:
        """Number, stamp and append, whole or not at all; a final event is also kept as ``outcome.json``. Returns the stamped event."""
        event, before = replace(event, seq=self.seq + 1, time=time.time()), self._file.tell()
        try:
            left = memoryview(json.dumps(event.to_dict(), ensure_ascii=False).encode() + b"\n")
            while left:                    # a nearly full disk takes a part
                left = left[self._file.write(left):]
            if event.final:
                os.fsync(self._file.fileno())
                write_json(self.run.path / "outcome.json", event.to_dict())
        except OSError:
            self._file.truncate(before)
            raise
        self.seq += 1
        return event

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


class EventTail:
    """Follows ``events.jsonl`` cheaply: each `poll` reads only the lines that came since the last one."""

    def __init__(self, run: RunFolder, after: int = 0):
        self._path, self._after, self._offset = run.path / "events.jsonl", after, 0

    def poll(self) -> list[events.Event]:
        """Events that arrived since the last poll, oldest first."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                fresh = file.read()
        except FileNotFoundError:
            return []
        *lines, rest = fresh.split(b"\n")
        self._offset += len(fresh) - len(rest)                # half a line may yet be taken back
        found = [e for line in lines if line and (e := _parse(line)) is not None and e.seq > self._after]
        if found:
            self._after = found[-1].seq
        return found
