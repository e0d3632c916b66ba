"""A chat with a warm base: stacks come and go, the base stays; every answer carries the stamp of what really spoke."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence

from engine.bases.load import load_model, load_tokenizer
from engine.errors import InvalidSpec, StudioError
from engine.events import Answered, Token
from engine.generate.sampling import Speech, never, prompt_ids
from engine.mix.stack import StackOnBase, check_entries
from engine.specs.talk import OpenChat, Say
from engine.store.library import ModelInfo, read_model


KEPT = ("a", "b")                          # columns with strengths of their own


class ChatSession:
    """One base with one stack. All methods belong to one thread, but `set_strengths`, which any thread may call at any time."""

    def __init__(self) -> None:
        self._stack: StackOnBase | None = None
        self._tokenizer = None
        self._beside: StackOnBase | None = None               # a complete model that answers as “file”
        self._beside_tokenizer = None
        self._wanted: list[float] | None = None               # written by any thread, taken up before the next token

    def open(self, request: OpenChat) -> None:
        """Put ``request.stack`` on ``request.base``; it, and the model beside it, are loaded only if others (or none) are there.

        Raises:
            BadModel, BadAdapter, WrongBase, InvalidSpec: with a sentence. What was open stays open and unchanged, except that a
            base which proves damaged only while it is read leaves nothing open.
        """
        request.check()
        self._wanted = None
        base = read_model(request.base)
        check_entries(base, request.stack)
        beside = read_model(request.beside) if request.beside else None
        if self._beside is not None and (beside is None or not _same(self._beside.base, beside)):
            self._beside = self._beside_tokenizer = None
        if self._stack is None or not _same(self._stack.base, base):
            tokenizer = load_tokenizer(base.path)
            self._stack = None             # first give the old base's memory back: two would not fit where one is large
            self._stack = StackOnBase(load_model(base.path, dtype=chat_dtype(base), device=chat_device()), base)
            self._tokenizer = tokenizer
        if beside is not None and self._beside is None:
            tokenizer = load_tokenizer(beside.path)
            self._beside = StackOnBase(load_model(beside.path, dtype=chat_dtype(beside), device=chat_device()), beside)
            self._beside_tokenizer = tokenizer
        self._stack.arrange(request.stack)

    def close(self) -> None:
        """Give the memory back."""
        self._stack = self._tokenizer = self._beside = self._beside_tokenizer = self._wanted = None

    def set_strengths(self, strengths: Sequence[float]) -> None:
        """Heard at the next token, even of an answer that is being spoken; by position in the open stack, 0 is off.

        Only notes the wish (so no thread ever touches a running model): numbers for a stack that is still being opened wait for
        it; numbers that fit no stack are never used. Raises `InvalidSpec` for what is no number.
        """
        if not all(isinstance(s, (int, float)) and math.isfinite(s) for s in strengths):
            raise InvalidSpec("A strength is not a number.", do="Set it anew.")
        self._wanted = [float(strength) for strength in strengths]

    def say(self, request: Say, stopped: Callable[[], bool] = never) -> Iterator[Token | Answered]:
        """Answer, column after column: `Token` events, then one `Answered` each. ``"base"`` is the untouched model, ``"a"`` and ``"b"``
        the open stack at ``request.strengths``, which nobody moves while they answer, ``"file"`` the model beside.

        Raises `StudioError` when nothing is open, `InvalidSpec`, `BadData` (too long), `Diverged`.
        """
        request.check()
        if unknown := set(request.columns) - {"base", "stack", "file", *KEPT}:
            raise InvalidSpec(f"Nobody called {sorted(unknown)[0]!r} can answer.", do="Ask “base”, “stack”, “a”, “b” or “file”.")
        if "file" in request.columns and self._beside is None:
            raise InvalidSpec("No exported model is open beside the stack.", do="Choose one.")
        if self._stack is None:
            raise StudioError("No model is open.", do="Choose a model first.")
        if not request.messages:
            raise InvalidSpec("There is no question.", do="Type one.")
        for column in request.columns:
            yield from self._answer(column, request, stopped)

    def _answer(self, column: str, request: Say, stopped: Callable[[], bool]) -> Iterator[Token | Answered]:
        stack, tokenizer = (self._beside, self._beside_tokenizer) if column == "file" else (self._stack, self._tokenizer)
        began, kept = time.monotonic(), column in KEPT
        before = [entry.strength for entry in stack.entries]
        speech = Speech(stack.model, tokenizer, prompt_ids(tokenizer, request.messages), max_new_tokens=request.max_new_tokens,
                        temperature=request.temperature, top_p=request.top_p, seed=request.seed, stopped=stopped,
                        before_token=self._take_up if column in ("base", "stack") else never)
        plain = column == "base" and bool(stack.placed)
        try:
            if kept:
                stack.set_strengths(request.strengths)
            with stack.model.disable_adapter() if plain else contextlib.nullcontext():
                for piece in speech:
                    yield Token(column, piece)
            yield Answered(column, speech.text, len(speech.ids), time.monotonic() - began, stack.base.fingerprint,
                           [] if column == "base" else stack.stamp(), speech.reason)
        finally:
            if kept and len(stack.placed) == len(before):
                stack.set_strengths(before)

    def _take_up(self) -> None:
        wanted = self._wanted
        if wanted is not None and len(wanted) == len(self._stack.placed):
            self._stack.set_strengths(wanted)


def _same(a: ModelInfo, b: ModelInfo) -> bool:
    return a.path == b.path and a.fingerprint == b.fingerprint and a.config == b.config


def chat_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def chat_dtype(base: ModelInfo) -> str:
    """Compute in the file's format where this machine is quick at it, in float32 where it is not (float16 never is on a processor)."""
    import torch

    quick = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "same" if chat_device() != "cpu" or (base.dtype == "BF16" and quick) else "float32"
