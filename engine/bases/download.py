"""One file from the network: resumed where it was cut, checked before it counts, stopped within a second.

The bytes collect in ``<target>.part``; beside it ``<target>.part.json`` says whose bytes they are, so that a later run (or process)
goes on where this one ended, and never glues two different files together.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import queue
import shutil
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from collections.abc import Callable, Iterator

from engine.errors import Cancelled, DiskFull, Unreachable
from engine.events import Progress
from engine.store.atomic import write_json
from engine.store.lock import FileLock

CHUNK = 1 << 18                            # bytes
SILENCE = 20.0                             # seconds without a byte until a connection counts as dead
TRIES = 4                                  # connections in a row that bring nothing
HEARTBEAT = 0.2                            # seconds between two looks at whether to stop
AGENT = "adapter-studio"


@dataclass(frozen=True)
class Source:
    """Where a file comes from. ``size`` in bytes, 0 if unknown. ``check``: ``sha256:<hex>``, ``git:<hex>`` (a git blob) or nothing.

    ``token`` is sent to this very address only, never to where it redirects.
    """

    url: str
    size: int = 0
    check: str = ""
    token: str = field(default="", repr=False)


def download(source: Source, target: Path, stopped: Callable[[], bool], *, stage: str = "Downloading") -> Iterator[Progress]:
    """Bring ``source`` to ``target``; yields `Progress` in bytes. A target that is already there and right is kept.

    Raises:
        Cancelled: ``stopped()`` became true; the part stays. Unreachable: no way through, or what came is not what was promised.
        DiskFull: it would not fit. Busy: another process is downloading this very file.
    """
    with FileLock(target.with_name(target.name + ".lock"), f"{target.name} is already being downloaded.", "Wait until it is done."):
        if target.exists():
            if not source.check or fits(target, source.check):
                return
            target.unlink()
        part, note = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.json")
        mark = _resumable_mark(part, note, source)
        needed = source.size - (part.stat().st_size if part.exists() else 0)
        if source.size and shutil.disk_usage(target.parent).free < needed + 50_000_000:
            raise DiskFull(f"There is too little room for {target.name}.", f"{needed / 1e6:.0f} MB are needed.",
                           "Free some space, or choose another folder, and try again.", needed=needed)
        yield from _collect(source, part, note, mark, stopped, stage)
        if source.check and not fits(part, source.check):
            part.unlink()
            note.unlink(missing_ok=True)
            raise Unreachable(f"{target.name} did not arrive as it was sent.", "Its checksum is wrong, so it was thrown away.",
                              "Try again; if it happens again, something between here and there changes files.", url=source.url)
        os.replace(part, target)
        note.unlink(missing_ok=True)
    target.with_name(target.name + ".lock").unlink(missing_ok=True)


def fits(path: Path, check: str) -> bool:
    """Whether the file's content is what ``check`` names."""
    kind, _, wanted = check.partition(":")
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == wanted


def get_json(url: str, *, token: str = "", seconds: float = 5.0, stopped: Callable[[], bool] = lambda: False):
    """The JSON at ``url``. Gives up after ``seconds`` whatever the network does. Raises `Unreachable` (``status`` among its facts)."""
    answers: queue.Queue = queue.Queue()

    def ask() -> None:
        try:
            with urllib.request.urlopen(_request(Source(url, token=token), 0, ""), timeout=seconds) as response:
                answers.put(json.loads(response.read(20_000_000)))
        except Exception as error:          # handed over to the thread that waits
            answers.put(error)

    threading.Thread(target=ask, name="ask", daemon=True).start()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if stopped():
            raise Cancelled()
        try:
            answer = answers.get(timeout=HEARTBEAT)
        except queue.Empty:
            continue
        if isinstance(answer, Exception):
            raise _unreachable(url, answer) from answer
        return answer
    raise _unreachable(url, TimeoutError(f"no answer within {seconds:.0f} s"))


def _resumable_mark(part: Path, note: Path, source: Source) -> str:
    """The server's mark (ETag) of the bytes in ``part``, if they belong to ``source``; otherwise they are thrown away."""
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if part.exists() and known["check"] == source.check and known["size"] == source.size and (source.check or known["mark"]):
            return known["mark"]
    except (OSError, ValueError, KeyError, TypeError):
        pass                               # nothing is known about the part: begin anew
    part.unlink(missing_ok=True)
    return ""


def _collect(source: Source, part: Path, note: Path, mark: str, stopped: Callable[[], bool], stage: str) -> Iterator[Progress]:
    """Fill ``part`` up, over as many connections as it takes."""
    failures, begun, first = 0, time.monotonic(), part.stat().st_size if part.exists() else 0
    with open(part, "ab") as file:
        while True:
            have, error = file.tell(), None
            if source.size and have == source.size:
                break
            line = _Line(source, have, mark)
            try:
                heard = 0.0
                for event in line.listen(stopped):
                    if isinstance(event, _Opened):
                        if event.start != have:
                            file.seek(0)
                            file.truncate()
                            first = 0
                        mark, total = event.mark, event.total or source.size
                        write_json(note, {"url": source.url, "check": source.check, "size": source.size, "mark": mark})
                        continue
                    file.write(event)
                    if time.monotonic() - heard > HEARTBEAT:
                        heard = time.monotonic()
                        yield _progress(stage, file.tell(), total, first, begun)
                if total and file.tell() < total:
                    raise _Cut(EOFError(f"{total - file.tell()} bytes are missing"))
                break
            except _Cut as cut:            # the line; whatever the disk raises goes through
                file.flush()
                error = cut.reason
            finally:
                line.hang_up()
            if isinstance(error, urllib.error.HTTPError) and error.code == 416 and have:
                file.seek(0)
                file.truncate()            # longer than the file there: not its beginning
                mark = ""
            failures = 0 if file.tell() > have else failures + 1
            if failures >= TRIES or (isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404, 410)):
                raise _unreachable(source.url, error) from error
            _wait(0.25 * 2 ** failures, stopped)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    if source.size and size != source.size:
        part.unlink()
        raise Unreachable(f"{part.stem} did not arrive as it was sent.", f"It has {size:,} bytes instead of {source.size:,}.", "Try again.",
                          url=source.url)
    yield Progress(stage, size, size, "bytes")


class _Cut(Exception):
    """The connection ended before its time; ``reason`` is what it said."""

    def __init__(self, reason: BaseException):
        super().__init__(str(reason))
        self.reason = reason


@dataclass(frozen=True)
class _Opened:
    start: int
    total: int
    mark: str


class _Line:
    """One connection, read by a thread of its own, so that whoever listens can leave at any moment."""

    def __init__(self, source: Source, have: int, mark: str):
        self._items: queue.Queue = queue.Queue(maxsize=16)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(_request(source, have, mark), have), name="download", daemon=True)
        self._thread.start()

    def listen(self, stopped: Callable[[], bool]) -> Iterator["_Opened | bytes"]:
        """First `_Opened`, then bytes until the end. Raises `_Cut` or `Cancelled`."""
        while True:
            if stopped():
                raise Cancelled()
            try:
                item = self._items.get(timeout=HEARTBEAT)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise _Cut(item) from item
            yield item

    def hang_up(self) -> None:
        """The thread ends by itself, at the latest when its connection falls silent; it writes nowhere."""
        self._left.set()
        self._thread.join(timeout=0.3)

    def _read(self, request: urllib.request.Request, have: int) -> None:
        try:
            with urllib.request.urlopen(request, timeout=SILENCE) as response:
                start, total = _place(response, have)
                self._put(_Opened(start, total, response.headers.get("ETag", "")))
                while not self._left.is_set() and (chunk := response.read1(CHUNK)):
                    self._put(chunk)
            self._put(None)
        except Exception as error:          # handed over to whoever listens
            self._put(error)

    def _put(self, item) -> None:
        while not self._left.is_set():
            try:
                return self._items.put(item, timeout=HEARTBEAT)
            except queue.Full:
                continue


def _request(source: Source, have: int, mark: str) -> urllib.request.Request:
    request = urllib.request.Request(source.url, headers={"User-Agent": AGENT, "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if mark and not mark.startswith("W/"):
            request.add_header("If-Range", mark)
    if source.token:
        request.add_unredirected_header("Authorization", f"Bearer {source.token}")
    return request


def _place(response, have: int) -> tuple[int, int]:
    """(first byte, whole size) of what a response brings; size 0 if it does not say."""
    if response.status == 206:
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        if unit == "bytes" and span.partition("-")[0] == str(have):
            return have, int(total) if total.isdigit() else 0
        raise http.client.HTTPException("the server sent another part than was asked for")
    return 0, int(response.headers.get("Content-Length") or 0)


def _progress(stage: str, done: int, total: int, first: int, begun: float) -> Progress:
    speed = (done - first) / max(time.monotonic() - begun, 1e-3)
    return Progress(stage, done, total, "bytes", seconds_left=(total - done) / speed if total and speed > 0 else None)


def _wait(seconds: float, stopped: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if stopped():
            raise Cancelled()
        time.sleep(min(HEARTBEAT, seconds))


def _unreachable(url: str, error: BaseException | None) -> Unreachable:
    host = url.split("/")[2] if "//" in url else url
    status = error.code if isinstance(error, urllib.error.HTTPError) else 0
    why = f"It answered with “{status} {error.reason}”." if status else "There may be no connection to the internet, or it was cut."
    return Unreachable(f"{host} could not be reached." if not status else f"{host} did not give the file.", why,
                       "Check the connection and try again: it goes on from what has arrived.", details=f"{url}\n{error!r}", status=status, url=url)
