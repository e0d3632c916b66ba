"""What a model says to a handful of questions, down to its logits: the yardstick by which an export is compared with the live stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import Cancelled
from engine.generate.sampling import Speech, prompt_ids

QUESTIONS = ("Hello! Who are you?", "What can you do for me today?", "Tell me in two sentences how bread is made.")
ANSWER = 40                                # tokens of a sample answer at most
BEHIND = 8                                 # positions of the prompt's end that are compared as well
PROMPTS = 12                               # questions at most, so that a check stays short and small


@dataclass
class Probe:
    """One question. ``ids`` is the prompt with the ``spoken`` tokens of the live stack's greedy answer behind it; the logits
    ``(positions, vocabulary)``, float32, belong to the last of them."""

    question: str
    ids: list[int]
    spoken: int
    positions: int
    live_answer: str
    live: Tensor
    base: Tensor


@dataclass(frozen=True)
class Distance:
    """How far two models are apart. ``largest``: greatest difference of a logit (after each row's mean is taken off, which no answer
    depends on). ``kl``: mean Kullback-Leibler divergence in nats. ``agreement``: share of positions with the same likeliest token."""

    largest: float
    kl: float
    agreement: float

    @property
    def finite(self) -> bool:
        return self.largest == self.largest and self.kl == self.kl and self.largest != float("inf")


def listen(stack, tokenizer, questions: list[str], stopped: Callable[[], bool]) -> Iterator[Probe]:
    """Ask the live stack, and its base on the same tokens. ``stack`` is a `StackOnBase`. Raises `Cancelled`."""
    for question in questions:
        prompt = prompt_ids(tokenizer, [{"role": "user", "content": question}])
        speech = Speech(stack.model, tokenizer, prompt, max_new_tokens=ANSWER, stopped=stopped)
        text = "".join(speech)
        if stopped():
            raise Cancelled()
        ids = prompt + speech.ids
        positions = min(len(ids), len(speech.ids) + BEHIND)
        live = logits_of(stack.model, ids, positions)
        with stack.model.disable_adapter():
            base = logits_of(stack.model, ids, positions)
        yield Probe(question, ids, len(speech.ids), positions, text.strip(), live, base)


@torch.no_grad()
def logits_of(model, ids: list[int], positions: int) -> Tensor:
    """Centred float32 logits of the last ``positions`` tokens."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -positions:].float()
    return logits - logits.mean(-1, keepdim=True)


def distance(pairs: list[tuple[Tensor, Tensor]]) -> Distance:
    """Distance over all rows of (reference, other) pairs; not-a-number anywhere makes it infinite."""
    largest, kl, same, rows = 0.0, 0.0, 0, 0
    for reference, other in pairs:
        gap = float((reference - other).abs().max())
        largest = max(largest, gap if gap == gap else float("inf"))
        p, q = torch.log_softmax(reference, -1), torch.log_softmax(other, -1)
        kl += float((p.exp() * (p - q)).sum(-1).clamp_min(0).sum())
        same += int((reference.argmax(-1) == other.argmax(-1)).sum())
        rows += len(reference)
    return Distance(largest, kl / rows, same / rows)


def loudness(triples: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    """At what strength the stack is in another model: its difference from the base, projected on the live stack's difference.

    Of (base, live, other) logits. 1 is exactly as heard, 0 is not at all; rounding has no direction and cancels out over a million
    numbers, so that this tells a merge at 90 % from one that is merely rounded.
    """
    along = sum(float(((other - base).double() * (live - base).double()).sum()) for base, live, other in triples)
    whole = sum(float((live - base).double().square().sum()) for base, live, _ in triples)
    return along / whole if whole else float("nan")
