"""The token loop: what a language model says, one token at a time, in sixty readable lines.

Works with any causal language model of transformers, wrapped in adapters or not. Between two tokens it lets go of everything
(no open torch context), so that strengths may change and a stop is heard at the next token.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jinja2 import TemplateError

from engine.data.render import chat_text, prepare_tokenizer
from engine.errors import BadData, BadModel, Diverged, StudioError
from engine.generate.text import Detokenizer
from engine.model.prompt_learning import cache_name

CHUNK = 512                                # prompt tokens a forward: bounds memory and how long a stop goes unheard


def never() -> bool:
    return False


class Speech:
    """One answer being spoken: iterate over it for pieces of text; afterwards ask what it was.

    Args:
        model: a causal LM in eval mode, e.g. ``LlamaForCausalLM`` or a ``PeftModel`` round one.
        prompt: token numbers of the whole prompt, not empty.
        temperature: 0 is greedy. top_p: share of probability that may be drawn from. seed: same seed, same answer; always drawn on
            the CPU, so that it does not depend on the device.
        stopped: asked before every token. before_token: called before every token, on this thread; the place to change strengths.

    Attributes:
        text: all that was said. ids: its token numbers, without the end token. reason: ``"end"`` (the model ended its turn),
        ``"length"`` or ``"stop"``.

    Keys and values of earlier tokens stay as they were computed when a strength changes in mid-answer: the change is heard from
    the next token on and costs nothing; what was already said is not re-read with other ears.

    Raises (while iterated): `BadData` when the prompt does not fit; `Diverged` when the model yields numbers that are none.
    """

    def __init__(self, model, tokenizer, prompt: list[int], *, max_new_tokens: int = 200, temperature: float = 0.0, top_p: float = 1.0,
                 seed: int = 0, stopped: Callable[[], bool] = never, before_token: Callable[[], object] = never):
        self.model, self.tokenizer, self.prompt = model, tokenizer, list(prompt)
        self.temperature, self.top_p, self.stopped = temperature, top_p, stopped
        self.limit, self.before_token = max_new_tokens, before_token
        self.text, self.ids, self.reason = "", [], "length"
        self._draw = torch.Generator().manual_seed(seed)
        self._cache: Any = None
        knows = inspect.signature(base_of(model).forward).parameters
        self._past = cache_name(base_of(model))
        self._in_parts = bool(self._past) and "position_ids" in knows      # state spaces, which have none, read a prompt whole
        self._options = {"use_cache": True, **({"logits_to_keep": 1} if "logits_to_keep" in knows else {})}    # a prompt's logits are huge

    def __iter__(self) -> Iterator[str]:
        room = context_length(self.model) - len(self.prompt)
        if room <= 0:
            raise BadData("This conversation is longer than the model can read.", f"It has {len(self.prompt)} tokens.",
                          "Start a new conversation, or shorten the question.")
        ends, words = end_tokens(self.model, self.tokenizer), Detokenizer(self.tokenizer)
        unread = self.prompt
        for _ in range(min(self.limit, room)):
            self.before_token()
            logits = self._read(unread)
            if logits is None:
                self.reason = "stop"
                break
            token = self._choose(logits)
            if token in ends:
                self.reason = "end"
                break
            self.ids.append(token)
            unread = [token] if self._cache is not None else self.prompt + self.ids
            if piece := words.push(token):
                self.text += piece
                yield piece
        if rest := words.finish():
            self.text += rest
            yield rest

    def _read(self, tokens: list[int]) -> torch.Tensor | None:
        """Run the model over new tokens; float32 logits ``[vocabulary]`` after the last one, or None when told to stop."""
        done, out = 0, None
        while done < len(tokens):
            if self.stopped():
                return None
            chunk = tokens[done:done + CHUNK] if self._in_parts else tokens
            ids = torch.tensor([chunk], device=_device(self.model))
            with torch.no_grad():          # not inference_mode: what adapters cache here must stay usable for training
                out = self.model(input_ids=ids, **({self._past: self._cache} if self._past else {}), **self._options)
            self._cache = getattr(out, self._past) if self._past else None
            done += len(chunk)
        return out.logits[0, -1].float().cpu()

    def _choose(self, logits: torch.Tensor) -> int:
        if not torch.isfinite(logits.max()) or torch.isnan(logits).any():
            raise Diverged("The model no longer says anything that makes sense.", "Its numbers have grown beyond all bounds.",
                           "Lower the strengths, or take the damaged adapter out of the stack.")
        if self.temperature <= 0:
            return int(logits.argmax())
        chances = torch.softmax(logits / self.temperature, -1)
        if self.top_p < 1:
            ordered, order = chances.sort(descending=True)
            ordered[ordered.cumsum(0) - ordered >= self.top_p] = 0        # the first is always kept
            chances = torch.zeros_like(chances).scatter_(0, order, ordered)
        return int(torch.multinomial(chances, 1, generator=self._draw))


def answer(model, tokenizer, messages: list[dict], *, max_new_tokens: int = 120, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0,
           stopped: Callable[[], bool] = never) -> str:
    """The whole answer to ``messages`` (each ``{"role", "content"}``) as text, end tokens left out.

    The model may be in the middle of training: it is put into eval mode for the answer and back afterwards.
    """
    with listening(model):
        speech = Speech(model, tokenizer, prompt_ids(tokenizer, messages), max_new_tokens=max_new_tokens, temperature=temperature,
                        top_p=top_p, seed=seed, stopped=stopped)
        for _ in speech:
            pass
        return speech.text.strip()


@contextlib.contextmanager
def listening(model) -> Iterator[None]:
    """Eval mode (no dropout) while inside; every module's own mode is put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def prompt_ids(tokenizer, messages: list[dict]) -> list[int]:
    """The chat as the model reads it, opened for its answer: by the same template and rules as in training. Raises `BadModel`."""
    try:
        text = chat_text(prepare_tokenizer(tokenizer), messages, cue=True)
    except (StudioError, MemoryError):
        raise
    except Exception as problem:           # a template is a small program of the model's maker; it can fail in any way
        raise BadModel("The model's chat template cannot be used.", "It fails on an ordinary conversation.",
                       "Get the model again, or choose another one.", details=repr(problem)) from problem
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def end_tokens(model, tokenizer) -> set[int]:
    """Every token that ends an answer: of the generation config, of the tokenizer, and the one its chat template closes a turn with."""
    found: set[int] = set()
    for value in (getattr(getattr(base_of(model), "generation_config", None), "eos_token_id", None), tokenizer.eos_token_id):
        found.update([value] if isinstance(value, int) else value or ())
    found.update(_turn_end(tokenizer))
    return found


def _turn_end(tokenizer) -> list[int]:
    """The first special token behind an answer in the chat template: `<|im_end|>`, `<|eot_id|>`, `<end_of_turn>` …"""
    if not getattr(tokenizer, "chat_template", None):
        return []
    mark = "answer-7f3a"
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "question"}, {"role": "assistant", "content": mark}], tokenize=False)
    except (TemplateError, TypeError, ValueError):
        return []                          # a template may refuse this little chat; then the other end tokens must do
    behind = text.rpartition(mark)[2].lstrip()
    special = [(token.content, number) for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    return [number for token, number in sorted(special, key=lambda pair: -len(pair[0])) if behind.startswith(token)][:1]


def context_length(model) -> int:
    """How many tokens the model can read at once; a very large number where it does not say."""
    config = base_of(model).config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    known = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return known if isinstance(known, int) and known > 0 else 2**31


def base_of(model):
    """The transformers model within the adapters, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _device(model) -> torch.device:
    return base_of(model).get_input_embeddings().weight.device
