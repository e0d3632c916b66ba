"""The worker's life: greet, warm up, answer, and never outlive its parent.

``python -m engine.worker`` speaks `engine.worker.protocol` on stdin and stdout. When the pipe closes (the parent hung up, or is
dead) a running job is asked to save and pause; whatever still hangs after `LAST_GRACE` seconds is ended by a watchdog that
needs neither Python nor its lock.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import signal
import sys
import threading

from engine import __version__
from engine.errors import StudioError, explain
from engine.store.runs import RunFolder
from engine.worker.protocol import Line
from engine.worker.run import run_job
from engine.worker.talk import AT_ONCE, Talk

LAST_GRACE = 60.0                          # seconds from the parent's end to ours, at the very most
NICENESS = 10                              # measured: with 0 the window is 7 ms late in the median on two cores, with 10 it is 0.1 ms
log = logging.getLogger(__name__)


class Worker:
    """Reader thread and main thread share only the inbox and what `_lock` guards."""

    def __init__(self, line: Line):
        self._line, self._talk = line, Talk(line)
        self._inbox: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ending = False
        self._run: RunFolder | None = None

    def live(self) -> None:
        """Answer until the parent hangs up."""
        self._line.write({"hello": {"pid": os.getpid(), "version": __version__}})
        self._line.listen(self._heard, self._ended)
        _preload(self._inbox)
        while (message := self._inbox.get()) is not None:
            if message["do"] == "run":
                self._carry_out(message)
            else:
                self._talk.answer(message)

    def _heard(self, message: dict) -> None:
        if message["do"] in AT_ONCE:
            self._talk.at_once(message)
            return
        if message["do"] != "run":
            self._talk.accept(message)
        self._inbox.put(message)

    def _ended(self) -> None:
        faulthandler.dump_traceback_later(LAST_GRACE, exit=True)
        with self._lock:
            self._ending = True
            if self._run is not None:
                try:
                    self._run.ask("pause")
                except OSError:
                    log.exception("the job could not be asked to pause")
        self._talk.stop_all()
        self._inbox.put(None)

    def _carry_out(self, message: dict) -> None:
        try:
            run = RunFolder(str(message.get("folder", "")))
            spec = run.spec()
            with self._lock:
                if self._ending:
                    return                 # nobody would hear of it
                self._run = run
            try:
                for event in run_job(spec, run):
                    final = event
            finally:
                with self._lock:
                    self._run = None
            self._line.write({"id": message["id"], "done": final.to_dict()})
        except Exception as error:
            log.exception("run")
            self._line.fail(message["id"], explain(error))


def _preload(inbox: queue.SimpleQueue) -> None:
    """Import what nearly every request needs, as long as nobody waits for something that may not need it."""
    for name in ("torch", "transformers", "engine.model.peft_model"):
        if inbox.empty():
            try:
                __import__(name)
            except (ImportError, OSError, StudioError):
                log.exception("preloading %s", name)     # whoever needs it will say so


def _settle_in() -> None:
    """Be a good neighbour of the window, deaf to the terminal's keys, and talkative in a crash."""
    faulthandler.enable(sys.stderr)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(process)d %(name)s %(message)s")
    for name in ("SIGINT", "SIGHUP"):      # they mean the parent, whose end we notice by its pipe
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    import psutil

    try:
        if os.name == "nt":
            psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
        else:
            os.nice(int(os.environ.get("ADAPTER_STUDIO_NICE", NICENESS)))
    except (OSError, ValueError, psutil.Error):
        log.info("the priority could not be lowered")
    os.environ.setdefault("OMP_NUM_THREADS", str(psutil.cpu_count(logical=False) or os.cpu_count() or 1))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def main() -> int:
    """Entry of the child process, also of a frozen program's ``--worker``."""
    line = Line.private()
    _settle_in()
    Worker(line).live()
    return 0


if __name__ == "__main__":
    sys.exit(main())
