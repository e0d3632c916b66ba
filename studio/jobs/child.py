"""A worker process and the pipe to it: JSON lines down, JSON lines up, everything else into a log file."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from collections.abc import Callable

import psutil

import engine
from engine.errors import StudioError, WorkerDied

log = logging.getLogger(__name__)
LOG_LIMIT = 1_000_000                      # bytes; then the file is kept once as .old and begun anew
TAIL = 4000                                # bytes of the log that go into an error's details


def command() -> list[str]:
    """How this program starts a worker. A frozen program is its own interpreter and must honour ``--worker`` as first argument."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "--worker"]
    return [sys.executable, "-P", "-m", "engine.worker"]       # -P: a random.py in the current folder is not ours


def environment() -> dict[str, str]:
    """The child's environment: finds `engine` where this process found it, waits without burning the window's cores."""
    env = dict(os.environ)
    root = str(Path(engine.__file__).resolve().parent.parent)
    if not getattr(sys, "frozen", False) and Path(root).name not in ("site-packages", "dist-packages"):
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH", ""))))
    if getattr(sys, "frozen", False) and os.name == "posix":   # PyInstaller changes it for itself; others need the original
        original = env.pop("LD_LIBRARY_PATH_ORIG", None)
        env.pop("LD_LIBRARY_PATH", None)
        if original:
            env["LD_LIBRARY_PATH"] = original
    env["PYTHONUTF8"] = "1"
    env.setdefault("OMP_WAIT_POLICY", "passive")
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    return env


class WorkerChild:
    """One child process.

    Args:
        log_file: receives the child's stderr (and whatever a library prints).
        said: called in a reader thread with each JSON object the child writes.
        ended: called in the reader thread, once, when the child's pipe has closed.
        argv: how to start it; `command()` by default.
    """

    def __init__(self, log_file: Path, said: Callable[[dict], None], ended: Callable[[], None], argv: list[str] | None = None):
        self._log_file, self._said, self._ended = log_file, said, ended
        self._write = threading.Lock()
        try:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            if log_file.exists() and log_file.stat().st_size > LOG_LIMIT:
                os.replace(log_file, log_file.with_suffix(".old"))
            with open(log_file, "ab") as stderr:
                self._log_start = stderr.tell()
                self.process = subprocess.Popen(argv or command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                                                env=environment(), creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0))
        except OSError as error:
            raise StudioError("The part of the program that does the work could not be started.", str(error),
                              "Start the studio again; if it returns, install it anew.", details=str(error)) from error
        self._reader = threading.Thread(target=self._read, name=f"worker-{self.process.pid}-reader", daemon=True)
        self._reader.start()

    @property
    def identity(self) -> tuple[int, float]:
        """(pid, start time): names this very process, even after its number was given to another."""
        return self.process.pid, process_start(self.process.pid) or 0.0

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def send(self, message: dict) -> None:
        """Write one line. Raises `WorkerDied` when the child is gone."""
        try:
            with self._write:
                self.process.stdin.write(json.dumps(message).encode() + b"\n")
                self.process.stdin.flush()
        except (OSError, ValueError) as error:
            raise self.died() from error

    def died(self) -> WorkerDied:
        """The error that tells of this child's end, with what it printed last as details."""
        code = self.process.poll()
        if code == -9 or code == 137:
            why = "The system or someone ended it; often the memory ran out."
        elif code is not None and code < 0:
            why = f"It crashed (signal {-code})."
        else:
            why = "" if code is None else f"It ended with code {code}."
        return WorkerDied("The process that did the work ended unexpectedly.", why, "Try again.", details=self.last_words(), exit_code=code)

    def last_words(self) -> str:
        """What the child wrote into its log, the end of it."""
        try:
            with open(self._log_file, "rb") as file:
                file.seek(max(self._log_start, file.seek(0, os.SEEK_END) - TAIL))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def hang_up(self) -> None:
        """Close the pipe to it: a sound child saves what it is doing and ends."""
        try:
            self.process.stdin.close()
        except OSError:
            log.debug("the worker's pipe was broken already")

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        """End the process and whatever it started."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            children = []
        self.process.kill()
        for child in children:
            try:
                child.kill()
            except psutil.Error:
                log.debug("grandchild %s had ended already", child.pid)

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it has ended within the time."""
        try:
            self.process.wait(timeout)
            return True
        except subprocess.TimeoutExpired:
            return False

    def close(self, grace: float = 5.0) -> None:
        """Hang up, wait, then insist. Afterwards the process and its reader thread are gone."""
        self.hang_up()
        if not self.wait(grace):
            self.terminate()
            if not self.wait(grace):
                self.kill()
                self.wait()
        self._reader.join(5.0)

    def _read(self) -> None:
        with self.process.stdout as lines:
            for line in lines:
                try:
                    message = json.loads(line)
                except ValueError:
                    log.warning("the worker wrote a line that is not JSON: %r", line[:200])
                    continue
                if isinstance(message, dict):
                    self._said(message)
        self._ended()


def process_start(pid: int) -> float | None:
    """When this process started (seconds since the epoch), None if there is none."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def lives(pid: int, start: float) -> bool:
    """Whether the process of this number and start time is still there."""
    found = process_start(pid)
    return found is not None and abs(found - start) < 2.0
