"""A chat in the terminal: streaming answers, strengths that change between (and are heard at once), the base for comparison."""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path

from engine import specs
from engine.errors import InvalidSpec, StudioError
from engine.events import Answered, Token
from engine.terminal import Terminal

HELP = """  /strength 0.5        strength of the (only) adapter; /strength 2 0.5 or /strength NAME 0.5 for one of several
  /base                ask the untouched model the last question again
  /stack               what is open, with strengths
  /new                 forget the conversation
  /quit                end"""


class Chat:
    """One base, one stack, one conversation. Opening may take seconds; raises what `ChatSession.open` raises."""

    def __init__(self, base: str, stack: list[specs.StackEntry], terminal: Terminal, *, longest: int, temperature: float, seed: int):
        from engine.generate.session import ChatSession

        self._terminal, self._stack, self._messages = terminal, stack, []
        self._how = {"max_new_tokens": longest, "temperature": temperature, "seed": seed}
        self._session = ChatSession()
        self._session.open(specs.OpenChat(base=base, stack=stack))
        self._title = Path(base).name

    def answer_all(self, questions: list[str]) -> int:
        """Answer each question by itself, print the answers, end."""
        for question in questions:
            self._messages = []
            if len(questions) > 1:
                self._terminal.say(f"> {question}")
            self._say(question)
        return 0

    def live(self) -> int:
        """Read lines until /quit or the end of input."""
        self._terminal.say(f"{self._title}{''.join(f' + {Path(e.adapter).name}' for e in self._stack)}. /help shows the commands.")
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "").strip()
            except (EOFError, KeyboardInterrupt):
                return 0
            try:
                if line == "/quit":
                    return 0
                if line:
                    self._command(*line.split()) if line.startswith("/") else self._say(line)
            except StudioError as error:
                self._terminal.error(error)

    def _command(self, word: str, *rest: str) -> None:
        if word == "/strength":
            self._strength(*rest)
        elif word == "/base":
            if not self._messages:
                raise InvalidSpec("There is no question yet.", do="Type one.")
            self._stream(self._messages[:-1], "base")
        elif word == "/stack":
            for number, entry in enumerate(self._stack, 1):
                self._terminal.say(f"  {number}. {Path(entry.adapter).name}  {entry.strength:g}")
        elif word == "/new":
            self._messages = []
        elif word == "/help":
            self._terminal.say(HELP)
        else:
            raise InvalidSpec(f"{word} is not a command.", do="/help shows them.")

    def _strength(self, *rest: str) -> None:
        names = [Path(entry.adapter).name for entry in self._stack]
        *which, number = rest or [""]
        try:
            strength = float(number)
            place = 0 if not which and len(names) == 1 else names.index(which[0]) if which[0] in names else int(which[0]) - 1
            changed = dataclasses.replace(self._stack[place if place >= 0 else len(names)], strength=strength)
        except (ValueError, IndexError):
            raise InvalidSpec("Which strength?", do="For example: /strength 0.5, or /strength 2 0.5 for the second adapter.") from None
        self._stack[place] = changed.check()
        self._session.set_strengths([e.strength if e.enabled else 0.0 for e in self._stack])

    def _say(self, question: str) -> None:
        answer = self._stream([*self._messages, {"role": "user", "content": question}], "stack")
        self._messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def _stream(self, messages: list[dict], column: str) -> str:
        """Print an answer as it is spoken; Ctrl+C ends it there."""
        broken: list[int] = []
        before = signal.signal(signal.SIGINT, lambda number, frame: broken.append(number))
        text = ""
        try:
            for event in self._session.say(specs.Say(messages=messages, columns=[column], **self._how), stopped=lambda: bool(broken)):
                if isinstance(event, Token):
                    self._terminal.out.write(event.text)
                    self._terminal.out.flush()
                elif isinstance(event, Answered):
                    text = event.text
        finally:
            signal.signal(signal.SIGINT, before)
        self._terminal.say()
        return text
