"""The verbs of short talk. Questions are answered in order in the main thread; strengths and stops act at once.

What takes long tells how far it is and ends when it is stopped (`WATCHED`); what a person need not wait for has a thread of its own
(`BESIDE`; but the head of a file is there at once), so that other questions are answered meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from engine import events, specs
from engine.errors import Busy, Cancelled, InvalidSpec, StudioError, explain
from engine.worker.protocol import Line
from engine.worker.run import resolve

log = logging.getLogger(__name__)


def _methods(request: specs.DescribeMethods) -> specs.MethodsReport:
    from engine.methods.registry import describe

    return describe()


ANSWERS: dict[str, str | Callable] = {
    "describe-data": "engine.data.describe.describe",
    "show-rows": "engine.data.describe.show_rows",
    "render-row": "engine.data.preview.render_row",
    "lint-data": "engine.data.lint.lint",
    "estimate-plan": "engine.train.estimate.estimate",
    "describe-methods": _methods,
}
WATCHED = ("describe-data", "lint-data")
BESIDE = ("describe-data", "lint-data")
EVERY = 0.2                                # seconds between two words on how far it is
SESSION: str | Callable = "engine.generate.session.ChatSession"
AT_ONCE = ("set-strengths", "stop")


class Talk:
    """Holds the open chat. `accept` and `at_once` run in the reader thread, `answer` in the main thread."""

    def __init__(self, line: Line):
        self._line = line
        self._lock = threading.Lock()
        self._session = None
        self._opening: set[int] = set()    # chats that are asked for but not open yet
        self._strengths: list[float] | None = None     # said while a chat was being opened
        self._stopped: set[int] = set()
        self._one_beside = {kind: threading.Lock() for kind in BESIDE}
        self._asked: set[int] = set()      # requests without a last word

    # --- reader thread ---

    def accept(self, message: dict) -> None:
        """Check a question before it is put in line. Raises `InvalidSpec`."""
        message["spec"] = _spec(message)
        with self._lock:
            if message["id"] in self._asked:
                raise InvalidSpec("A request's number was used twice.")
            self._asked.add(message["id"])
            if message["do"] == "open-chat":
                self._opening.add(message["id"])
                self._strengths = None     # they belonged to the chat before

    def at_once(self, message: dict) -> None:
        """Strengths are heard at the next token; a stop ends an answer there."""
        if message["do"] == "stop":
            with self._lock:
                if message["id"] in self._asked:
                    self._stopped.add(message["id"])
            return
        strengths = _spec(message).strengths
        with self._lock:
            if self._opening:
                self._strengths = strengths
            elif self._session is None:
                raise Busy("No chat is open.", do="Choose a model first.")
            else:
                self._set(strengths)
        self._line.write({"id": message["id"], "done": {}})

    def stop_all(self) -> None:
        """The parent is gone: end what is being said."""
        with self._lock:
            self._stopped |= self._asked

    # --- main thread ---

    def answer(self, message: dict) -> None:
        """Answer one question, whatever happens; some beside the others."""
        if message["do"] in BESIDE and not getattr(message["spec"], "head", 0):
            self._prepare(message["spec"])
            threading.Thread(target=self._answer_beside, args=(message,), name="beside", daemon=True).start()
        else:
            self._answer(message)

    def _answer_beside(self, message: dict) -> None:
        with self._one_beside[message["do"]]:      # the next one waits: the one before was stopped as a rule, and they share a tokenizer
            self._answer(message)

    def _prepare(self, spec: specs.Spec) -> None:
        """Two threads that import at the same time wait for each other for ever: what is heavy is loaded here, in the main thread."""
        resolve(ANSWERS[spec.kind])
        if getattr(spec, "base", ""):
            try:
                resolve("engine.data.preview.tokenizer_of")(spec.base, "lint")
            except Exception:              # the answer itself will say so
                log.info("the tokenizer of %s", spec.base, exc_info=True)

    def _answer(self, message: dict) -> None:
        id, spec = message["id"], message["spec"]
        try:
            if id in self._stopped:
                raise Cancelled()
            done = self._open(id, spec) if spec.kind == "open-chat" else self._say(id, spec) if spec.kind == "say" else self._ask(id, spec)
            last_word = {"done": {} if done is None else done.to_dict()}
        except Exception as error:
            last_word = {"failed": explain(error).to_dict()}
        with self._lock:                   # before the last word is out, for then the number may be used again
            self._asked.discard(id)
            self._stopped.discard(id)
            self._opening.discard(id)
        self._line.write({"id": id, **last_word})

    def _ask(self, id: int, spec: specs.Spec) -> specs.Spec | None:
        answer = resolve(ANSWERS[spec.kind])
        if spec.kind in WATCHED:
            return answer(spec, self._watch(id))
        return answer(spec.plan.check() if isinstance(spec, specs.EstimatePlan) else spec)

    def _watch(self, id: int) -> Callable[[str, float, float], None]:
        """Called with (stage, rows done, rows in all or 0): tells it now and then; raises `Cancelled` when nobody wants the answer any more."""
        told = time.monotonic()

        def watch(stage: str, done: float, total: float = 0) -> None:
            nonlocal told
            if id in self._stopped:
                raise Cancelled()
            if time.monotonic() - told >= EVERY:
                told = time.monotonic()
                self._line.write({"id": id, "event": events.Progress(stage, done, total, "rows").to_dict()})
        return watch

    def _open(self, id: int, spec: specs.OpenChat) -> None:
        if self._session is None:
            self._session = resolve(SESSION)()
        self._session.open(spec)
        with self._lock:                   # from here on strengths are heard at once
            self._opening.discard(id)
            if self._strengths is not None and not self._opening:
                self._set(self._strengths)

    def _set(self, strengths: list[float]) -> None:
        try:
            self._session.set_strengths(strengths)
        except StudioError:
            raise
        except Exception as error:         # a library's error must not end the reader thread
            raise explain(error) from error

    def _say(self, id: int, spec: specs.Say) -> None:
        if self._session is None:
            raise Busy("No chat is open.", do="Choose a model first.")
        for event in self._session.say(spec, stopped=lambda: id in self._stopped):
            self._line.write({"id": id, "event": event.to_dict()})


def _spec(message: dict) -> specs.Spec:
    kind = message["do"]
    if kind not in specs.TALK_KINDS:
        raise InvalidSpec(f"The worker does not know “{kind}”.", do=f"It knows run, stop, {', '.join(specs.TALK_KINDS)}.")
    data = message.get("spec")
    if not isinstance(data, dict):
        raise InvalidSpec("The request has no spec.")
    return specs.TALK_KINDS[kind].from_dict(data).check()
