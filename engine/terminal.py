"""How events look in a terminal: one living line with a bar, or plain lines where there is no terminal."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

from engine import events
from engine.errors import StudioError

LINE_EVERY = 10.0                          # seconds between two lines of progress where no line can be rewritten
BAR = 24                                   # characters


class Terminal:
    """Shows events as they come. ``out`` needs to be a terminal for the living line; anything else gets lines."""

    def __init__(self, out: TextIO | None = None):
        self.out = out or sys.stdout
        self.living = self.out.isatty()
        self._drawn = 0                    # width of the living line on screen
        self._stage, self._last = "", 0.0

    def say(self, text: str = "") -> None:
        """A line that stays."""
        self._wipe()
        print(text, file=self.out, flush=True)

    def error(self, error: StudioError) -> None:
        """What, why and what to do; technical details only on demand (`ADAPTER_STUDIO_DETAILS=1` in the environment)."""
        self.say("\n".join(filter(None, (error.what, error.why, error.do and f"→ {error.do}"))))

    def show(self, event: events.Event) -> None:
        """Draw one event of a job."""
        match event:
            case events.Progress():
                self._progress(event.stage, event.done, event.total, _amount(event), event.seconds_left)
            case events.Step():
                detail = f"step {event.step}/{event.steps} · error {event.error:.3f} · {event.tokens_per_second:.0f} tokens/s"
                self._progress("Learning", event.step, event.steps, detail, event.seconds_left)
            case events.Evaluated():
                best = " (best so far)" if event.best and event.step else ""
                self.say(f"  error on unseen examples {event.error:.3f} at step {event.step}{best}")
            case events.Note():
                self.say(f"  {'! ' if event.level == 'warning' else ''}{event.text}")
            case events.Sample():
                self.say(f"  “{event.prompt}” → {event.answer.strip()}")
            case events.Checked():
                self.say(f"  {'✓' if event.passed else '✗'} {event.sentence}")
            case _ if event.final:
                self._wipe()

    def _progress(self, stage: str, done: float, total: float, detail: str, seconds_left: float | None) -> None:
        left = "" if not seconds_left else f" · {duration(seconds_left)} left"
        share = min(1.0, done / total) if total else 0.0
        now, complete = time.monotonic(), bool(total) and done >= total
        if self.living:
            bar = "█" * round(share * BAR) + "░" * (BAR - round(share * BAR)) if total else ""
            line = f"  {stage} {bar} {detail}{left}"[:shutil.get_terminal_size().columns - 1]
            self.out.write("\r" + line.ljust(self._drawn))
            self.out.flush()
            self._drawn = len(line)
        elif stage != self._stage or complete or now - self._last >= LINE_EVERY:
            percent = f" {share:.0%}" if total else ""
            self.say(f"  {stage}{percent} {detail}{left}".rstrip())
            self._last = now
        self._stage = stage

    def _wipe(self) -> None:
        if self._drawn:
            self.out.write("\r" + " " * self._drawn + "\r")
            self._drawn = 0


def _amount(event: events.Progress) -> str:
    if not event.total and not event.done:
        return ""
    if event.unit == "bytes":
        return f"{event.done / 1e6:.0f}" + (f" of {event.total / 1e6:.0f} MB" if event.total else " MB")
    return f"{event.done:g}" + (f" of {event.total:g}" if event.total else "") + f" {event.unit}".rstrip()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as people say them: ``"1 h 5 min"``, ``"2 min 10 s"``, ``"9 s"``."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def table(rows: list[list[str]], head: list[str]) -> str:
    """Columns as wide as they need to be, right-aligned where every cell is a number."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    numeric = [all(row[i].replace(".", "").replace("-", "").isdigit() for row in rows) for i in range(len(head))]

    def line(row: list[str]) -> str:
        return "  ".join(cell.rjust(w) if n else cell.ljust(w) for cell, w, n in zip(row, widths, numeric, strict=True)).rstrip()

    return "\n".join([line(head), "  ".join("-" * w for w in widths), *map(line, rows)])
