"""One sentence on a training curve, by rules that can be read, and tested, without a window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from collections.abc import Sequence

from studio.core.text import amounts
from studio.core.text import teach as words

NOTICEABLE = 0.01                          # a change of the error below one part in a hundred is noise
RISING = 0.02                              # above the best by this share: really worse, not noise


@dataclass(frozen=True)
class Verdict:
    """``kind`` is one of waiting, learning, improving, flat, by_heart, worse, no_better, broken; ``tone`` good, plain, warn or bad.

    ``step`` is where on the curve the sentence can be seen, if at one step.
    """

    kind: str
    tone: str
    sentence: str
    advice: str = ""
    step: float | None = None


def judge(learned: Sequence[float], unseen: Sequence[float], unseen_steps: Sequence[int] = ()) -> Verdict:
    """Judge a run.

    Args:
        learned: error on the examples being learned, one a step (nats a token), oldest first.
        unseen: error on held-out examples, the first being the untouched base.
        unseen_steps: the steps of ``unseen``, to name the best one.
    """
    if any(not math.isfinite(value) for value in [*learned[-3:], *unseen[-1:]]):
        return Verdict("broken", "bad", words.VERDICT_BROKEN(), words.ADVICE_BROKEN())
    if len(unseen) < 2:
        return _without_unseen(learned)
    base, best, last, before = unseen[0], min(unseen), unseen[-1], unseen[-2]
    at = unseen_steps[list(unseen).index(best)] if unseen_steps else None
    if best >= base * (1 - NOTICEABLE):
        if len(unseen) < 3:
            return Verdict("learning", "plain", words.VERDICT_EARLY())
        return Verdict("no_better", "warn", words.VERDICT_NO_BETTER(), words.ADVICE_NO_BETTER())
    if last > best * (1 + RISING):
        if _falls(learned):
            return Verdict("by_heart", "warn", words.VERDICT_BY_HEART(best=words.step_or_earlier(at)), words.ADVICE_BY_HEART(), at)
        return Verdict("worse", "warn", words.VERDICT_WORSE(best=words.step_or_earlier(at)), words.ADVICE_WORSE(), at)
    if last < before * (1 - NOTICEABLE) or len(unseen) == 2:
        return Verdict("improving", "good", words.VERDICT_IMPROVING(share=amounts.percent((base - last) / base)), step=at)
    return Verdict("flat", "plain", words.VERDICT_FLAT(share=amounts.percent((base - best) / base)), words.ADVICE_FLAT(), at)


def _without_unseen(learned: Sequence[float]) -> Verdict:
    if len(learned) < 8:
        return Verdict("waiting", "plain", words.VERDICT_WAITING())
    if _falls(learned):
        return Verdict("learning", "good", words.VERDICT_LEARNING())
    return Verdict("learning", "plain", words.VERDICT_EARLY())


def _falls(learned: Sequence[float]) -> bool:
    """Is the later half of the last forty steps lower than the earlier half?"""
    recent = [value for value in learned[-40:] if math.isfinite(value)]
    half = len(recent) // 2
    if half < 2:
        return False
    return sum(recent[half:]) / (len(recent) - half) < sum(recent[:half]) / half * (1 - NOTICEABLE)
