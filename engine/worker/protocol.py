"""The worker's private line to its parent: one JSON object a line, on descriptors that no library can reach.

Down: ``{"id": n, "do": kind, "spec": {…}}`` · ``{"id": n, "do": "run", "folder": path}`` · ``{"do": "stop", "id": n}``.
Up: ``{"hello": {…}}`` once, then ``{"id": n, "event": {…}}`` any number of times and one ``{"id": n, "done": {…}}`` or
``{"id": n, "failed": {…}}`` for each request.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable

from engine.errors import InvalidSpec, StudioError

LINE_LIMIT = 32_000_000                    # bytes; a longer line is refused, not stored


class Line:
    """Reads requests in a thread of its own and writes answers from any thread."""

    def __init__(self, incoming: int, outgoing: int):
        self._in = os.fdopen(incoming, "rb")
        self._out = os.fdopen(outgoing, "wb", buffering=0)
        self._lock = threading.Lock()

    @classmethod
    def private(cls) -> "Line":
        """Take over stdin and stdout; whoever prints from now on prints to stderr, whoever reads finds nothing."""
        incoming, outgoing = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        return cls(incoming, outgoing)

    def write(self, message: dict) -> None:
        """Write one message; what JSON cannot hold goes as text. A parent that is gone is noticed by the reader, not here."""
        data = json.dumps(message, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"
        try:
            with self._lock:
                while data:
                    data = data[self._out.write(data):]
        except OSError:
            return

    def fail(self, id: int | None, error: StudioError) -> None:
        self.write({"id": id, "failed": error.to_dict()})

    def listen(self, heard: Callable[[dict], None], ended: Callable[[], None]) -> threading.Thread:
        """Start the reader thread: ``heard`` takes each request, ``ended`` is called when the parent hangs up or is gone."""
        thread = threading.Thread(target=self._read, args=(heard, ended), name="requests", daemon=True)
        thread.start()
        return thread

    def _read(self, heard: Callable[[dict], None], ended: Callable[[], None]) -> None:
        try:
            while line := self._in.readline(LINE_LIMIT):
                if not line.endswith(b"\n"):
                    while (rest := self._in.readline(LINE_LIMIT)) and not rest.endswith(b"\n"):
                        pass
                    line = b""
                if line.strip() or line == b"":
                    self._parse(line, heard)
        finally:
            ended()

    def _parse(self, line: bytes, heard: Callable[[dict], None]) -> None:
        """Whatever the line holds, it is answered; nothing in it can end the worker."""
        id = None
        try:
            message = json.loads(line)
            if not isinstance(message, dict) or not isinstance(message.get("do"), str) or type(message.get("id")) is not int:
                raise ValueError("needs “do” and “id”")
            id = message["id"]
            heard(message)
        except StudioError as error:
            self.fail(id, error)
        except (ValueError, RecursionError) as error:
            self.fail(id, InvalidSpec("The worker could not read a request.", str(error)[:200]))
