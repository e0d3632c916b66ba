"""How late the window's event loop is while a real training runs in its child, and how soon the window stands.

    python -m tests.bench.window_lateness [--base FOLDER] [--home HOME] [--seconds 60] [--bare]

Without ``--base`` a random model of about 14 M parameters is made and trained. Prints: time from process start to the first
painted window; lateness of a 5 ms timer (idle, and while training; p50, p99, worst, in ms). Ends with 1 if a limit is broken.
“beside” is the same timer at the same time in a program that does nothing else: what the machine does to anyone's window; “own” is
the longest that the window's thread itself computed at a stretch, whatever else ran.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6.QtCore import QEventLoop, Qt, QTimer                                  # noqa: E402
from PySide6.QtWidgets import QApplication                                         # noqa: E402

from engine import events, specs                                                   # noqa: E402
from engine.store.home import Home                                                 # noqa: E402
from studio.jobs.bridge import QueueBridge                                         # noqa: E402
from studio.jobs.job import State                                                  # noqa: E402
from studio.jobs.queue import open_queue                                           # noqa: E402
from studio.jobs.runner_process import ProcessRunner                               # noqa: E402

TICK = 0.005                               # seconds
LIMITS = {"p99": 8.0, "worst": 50.0, "painted": 1000.0}     # milliseconds
ROOT = Path(__file__).parents[2]

FIRST_PAINT = """
import os, sys, time
from PySide6.QtCore import QEvent, QObject, QTimer
from PySide6.QtWidgets import QMainWindow
import studio.app
class Painted(QObject):
    def eventFilter(self, watched, event):
        if event.type() == QEvent.Type.Paint and isinstance(watched, QMainWindow):
            self.studio.app.removeEventFilter(self)
            print("painted", (time.monotonic() - float(sys.argv[2])) * 1000, time.process_time() * 1000, "torch" in sys.modules, flush=True)
            QTimer.singleShot(0, self.studio.window.close)
        return False
painted, build = Painted(), studio.app.open_studio
def spy(*args, **more):
    painted.studio = build(*args, **more)
    painted.studio.app.installEventFilter(painted)
    return painted.studio
studio.app.open_studio = spy
from studio.__main__ import main
sys.exit(main(["--home", sys.argv[1]]))
"""


BESIDE = """
import sys, threading
from PySide6.QtCore import QCoreApplication, QTimer
from tests.bench.window_lateness import Lateness
app = QCoreApplication([])
lateness = Lateness()
lateness.start()
stop = QTimer()
stop.timeout.connect(lambda: over.is_set() and app.quit())
stop.start(100)
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
app.exec()
import json
print(json.dumps(lateness.stop()))
"""


class Beside:
    """The same measurement in a program without a studio."""

    def __init__(self):
        self._process = subprocess.Popen([sys.executable, "-c", BESIDE], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def stop(self) -> dict[str, float]:
        return json.loads(self._process.communicate()[0])


class Lateness:
    """A timer that notes how much later than asked it was called, and how long its thread itself computed since the last time."""

    def __init__(self):
        self.late: list[float] = []
        self.own: list[float] = []
        self._last = self._computed = 0.0
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._tick)

    def start(self) -> None:
        self.late, self.own, self._last, self._computed = [], [], time.perf_counter(), time.thread_time()
        self._timer.start(round(TICK * 1000))

    def _tick(self) -> None:
        now, computed = time.perf_counter(), time.thread_time()
        self.late.append(max(0.0, (now - self._last - TICK) * 1000))
        self.own.append((computed - self._computed) * 1000)
        self._last, self._computed = now, computed

    def stop(self) -> dict[str, float]:
        self._timer.stop()
        late = sorted(self.late)
        return {"ticks": len(late), "p50": late[len(late) // 2], "p99": late[len(late) * 99 // 100], "worst": late[-1], "own": max(self.own)}


def spin(seconds: float, until=lambda: False) -> None:
    """Let the event loop run."""
    loop = QEventLoop()
    QTimer.singleShot(int(seconds * 1000), loop.quit)
    watch = QTimer()
    watch.timeout.connect(lambda: until() and loop.quit())
    watch.start(200)
    loop.exec()


def first_paint(home: Path) -> float:
    """Milliseconds from the start of the process to the first painted window, the best of three.

    By this program's clock: what the system says of when a process was made may be a second off.
    """
    times = []
    for _ in range(3):
        command = [sys.executable, "-c", FIRST_PAINT, str(home), str(time.monotonic())]
        out = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        _, milliseconds, own, torch_there = next(line for line in out.splitlines() if line.startswith("painted")).split()
        assert torch_there == "False", "the window's process has imported torch"
        times.append((float(milliseconds), float(own)))
    print("first painted window after", ", ".join(f"{wall:.0f} ({own:.0f} of computing)" for wall, own in times), "ms")
    return min(times)[0]


def material(folder: Path, base: str | None) -> specs.TrainSpec:
    """A training that lasts: 400 short rows, many passes."""
    if base is None:
        base = str(folder / "model")
        code = "import sys; from tests.support.tiny import save_base; save_base(sys.argv[1], hidden=384, layers=8)"
        subprocess.run([sys.executable, "-c", code, base], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps({"question": f"What is {n} times {n}?", "answer": f"{n} times {n} is {n * n}. " * 4}) + "\n"
                            for n in range(400)))
    return specs.TrainSpec(base=base, data=str(data), out=str(folder / "adapter"), passes=1000.0, early_stop=False, checkpoint_seconds=5.0)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--bare", action="store_true", help="only queue and bridge, without the window")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        painted = None if chosen.bare else first_paint(folder / "first")
        spec = material(folder, chosen.base)
        app, home = QApplication([]), Home(folder / "home")
        if chosen.bare:
            queue = open_queue(home, ProcessRunner(home.root / "worker.log"))
            queue.start()
            bridge, close = QueueBridge(queue), queue.close
        else:
            from studio.app import open_studio

            studio = open_studio(home, app=app)
            studio.show()
            queue, bridge, close = studio.queue, studio.queue_bridge, lambda: (studio.window.close(), spin(30, lambda: studio.window.closed))
            spin(5)
        lateness = Lateness()
        lateness.start()
        spin(5)
        idle = lateness.stop()

        steps, got = [], []
        bridge.event.connect(lambda id, event: (got.append(event), steps.append(event.step) if isinstance(event, events.Step) else None))
        job = queue.submit(spec, "lateness")
        if not chosen.bare:
            studio.show_job(job.id)        # the living curve
        lateness.start()
        spin(120, lambda: steps)
        starting = lateness.stop()
        control = Beside()
        spin(2)
        lateness.start()
        spin(chosen.seconds, lambda: not queue.job(job.id).active)
        training, beside = lateness.stop(), control.stop()
        state = queue.job(job.id).state
        close()

    for name, numbers in (("idle", idle), ("child starting", starting), ("training", training), ("beside", beside)):
        print(f"{name:<15}" + "  ".join(f"{key} {value:.1f}" if key != "ticks" else f"{value} ticks" for key, value in numbers.items()))
    print(f"{len(steps)} steps and {len(got)} events arrived; job {state.value}; load {os.getloadavg()[0]:.1f}")
    broken = [f"{key} {training[key]:.1f} ms > {LIMITS[key]:g}" for key in ("p99", "worst") if training[key] > LIMITS[key]]
    if painted is not None and painted > LIMITS["painted"]:
        broken.append(f"first paint {painted:.0f} ms > {LIMITS['painted']:g}")
    if "torch" in sys.modules:
        broken.append("torch was imported in the window's process")
    if state is not State.RUNNING or not steps:
        broken.append(f"no training was running ({state.value})")
    print("limits broken: " + "; ".join(broken) if broken else "all limits kept")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
