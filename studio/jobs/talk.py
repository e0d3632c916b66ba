"""Short questions to a warm worker while the person waits: what is in this file, what would this cost, answer in the chat."""

from __future__ import annotations

import collections
import itertools
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine import events, specs
from engine.errors import StudioError, WorkerDied
from studio.jobs.child import WorkerChild


@dataclass(frozen=True)
class Done:
    """The request is answered; ``answer`` is the dataclass that its spec names, or None."""

    answer: specs.Spec | None = None


@dataclass(frozen=True)
class Failed:
    """The request could not be answered."""

    error: StudioError


Word = events.Event | Done | Failed
OF_A_CHAT = specs.OpenChat | specs.SetStrengths | specs.Say


class Talk(Protocol):
    """Tickets are positive and never repeat; each gets any number of events and then exactly one `Done` or `Failed`."""

    def ask(self, request: specs.Spec) -> int: ...

    def stop(self, ticket: int) -> None: ...

    def drain(self) -> list[tuple[int, Word]]: ...

    def close(self) -> None: ...


class ProcessTalk:
    """`Talk` with a child process, started at the first question and again after it died.

    After a restart the chat that was open is opened again by itself, when the next message for it comes.
    ``log_file`` takes the child's stderr; ``argv`` says how to start it (tests). Thread-safe.
    """

    def __init__(self, log_file: Path, argv: list[str] | None = None):
        self._log_file, self._argv = log_file, argv
        self._lock = threading.RLock()
        self._words: collections.deque[tuple[int, Word]] = collections.deque()
        self._numbers = itertools.count(1)
        self._open: dict[int, specs.Spec] = {}         # tickets that wait for their last word
        self._child: WorkerChild | None = None
        self._chat: list[specs.Spec] = []              # what a fresh child must hear before it can go on with the chat
        self._knows_chat = False                       # whether this child has heard it
        self._hidden: set[int] = set()                 # tickets of our own
        self._closed = False

    def ask(self, request: specs.Spec) -> int:
        """Send a request; returns its ticket at once. Whatever goes wrong is a `Failed` of this ticket."""
        with self._lock:
            ticket = next(self._numbers)
            try:
                self._ready()
                self._open[ticket] = request
                self._send(ticket, request)
            except StudioError as error:
                self._open[ticket] = request
                self._end(ticket, Failed(error))
            self._remember(request)
            return ticket

    def stop(self, ticket: int) -> None:
        """End an answer early; its ticket still gets its last word. Unknown tickets are ignored."""
        with self._lock:
            if ticket in self._open and self._child is not None:
                try:
                    self._child.send({"do": "stop", "id": ticket})
                except StudioError as error:
                    self._end(ticket, Failed(error))

    def drain(self) -> list[tuple[int, Word]]:
        """All words since the last call, oldest first."""
        found = []
        while True:
            try:
                found.append(self._words.popleft())
            except IndexError:
                return found

    def warm(self) -> None:
        """Start the child now, before the first question. Raises `StudioError`."""
        with self._lock:
            self._ready()

    def close(self) -> None:
        """End the child; open tickets get no more words."""
        with self._lock:
            self._closed = True
            child, self._child = self._child, None
            self._open.clear()
        if child is not None:
            child.close(2.0)

    # --- inside ---

    def _send(self, ticket: int, request: specs.Spec) -> None:
        if isinstance(request, OF_A_CHAT) and not self._knows_chat:    # nobody else waits for a chat that perhaps killed the last child
            self._knows_chat = True
            for earlier in self._chat if not isinstance(request, specs.OpenChat) else ():
                hidden = next(self._numbers)
                self._hidden.add(hidden)
                self._child.send(_message(hidden, earlier))
        self._child.send(_message(ticket, request))

    def _ready(self) -> None:
        """Make sure of a living child."""
        if self._closed:
            raise WorkerDied("The studio is closing.")
        if self._child is not None and self._child.alive:
            return
        if self._child is not None:
            old, self._child = self._child, None
            self._lost(old)
            old.hang_up()
        child = WorkerChild(self._log_file, self._heard, lambda: self._lost(child), self._argv)
        self._child, self._knows_chat = child, False

    def _remember(self, request: specs.Spec) -> None:
        if isinstance(request, specs.OpenChat):
            self._chat = [request]
        elif isinstance(request, specs.SetStrengths) and self._chat:
            self._chat = [self._chat[0], request]

    def _heard(self, message: dict) -> None:
        with self._lock:
            ticket = message.get("id")
            if ticket in self._hidden:
                if "event" not in message:
                    self._hidden.discard(ticket)
            elif ticket not in self._open:
                return                     # the hello, or a word for a ticket that has ended
            elif "event" in message:
                self._words.append((ticket, events.from_dict(message["event"])))
            elif "failed" in message:
                self._end(ticket, Failed(StudioError.from_dict(message["failed"])))
            elif "done" in message:
                self._end(ticket, Done(specs.from_dict(message["done"]) if message["done"] else None))

    def _lost(self, child: WorkerChild) -> None:
        """The child has ended: whoever still waits is told. Runs in its reader thread, or in `_ready`."""
        child.wait(1.0)
        with self._lock:
            if self._child is not None and self._child is not child:
                return                     # an older child's late farewell
            for ticket in list(self._open):
                self._end(ticket, Failed(child.died()))
            self._hidden.clear()

    def _end(self, ticket: int, word: Done | Failed) -> None:
        if self._open.pop(ticket, None) is not None:
            self._words.append((ticket, word))


def _message(ticket: int, request: specs.Spec) -> dict:
    return {"id": ticket, "do": request.kind, "spec": request.to_dict()}
