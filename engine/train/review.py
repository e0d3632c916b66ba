"""Is it better? An adapter against its untaught model, on rows that were never learned and on general questions. A job.

Each held-back row is judged by its error before and after; some are also answered. The interval says what other rows of the same kind
would have said (bootstrap over rows). Lower strengths are tried on the same rows: an adapter that has learned by heart is often better
at less than its full strength.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from engine.bases.load import load_model
from engine.data.render import Rendered, render
from engine.errors import Cancelled
from engine.events import Event, Finished, Note, Progress, Reviewed, Stopped
from engine.generate.sampling import answer
from engine.mix.stack import StackOnBase
from engine.specs import ReviewSpec, StackEntry
from engine.store.library import read_model
from engine.store.recipe import add_to_recipe, plan_of, read_recipe
from engine.store.resources import resource
from engine.store.runs import RunFolder
from engine.train.batching import collate
from engine.train.fsdp import Split, is_wanted
from engine.train.loss import Objective
from engine.train.precision import Precision, exact_computing
from engine.train.prepare import best_device, read_material
from engine.train.team import Team

NOTICEABLE = 0.02                          # a row's error that changes by a smaller share is the same
LOWER = (0.5, 0.75)                        # strengths that are tried beside the full one
RESAMPLES, CONFIDENCE = 2000, 0.95
FORGOTTEN = 0.1                            # share by which the error on general questions may rise


@dataclass(frozen=True)
class Scored:
    """Summed errors in nats, and learned tokens, of the same rows."""

    errors: Sequence[float]
    tokens: Sequence[int]

    @property
    def mean(self) -> float:
        """Mean error of a learned token."""
        return sum(self.errors) / max(sum(self.tokens), 1)

    def of(self, row: int) -> float:
        return self.errors[row] / self.tokens[row]


def review(spec: ReviewSpec, run: RunFolder) -> Iterator[Event]:
    """Compare; a job (see `engine.store.runs`). What it finds stands in the adapter's recipe under ``review``.

    ``Finished.result``: adapter, rows, before, after (mean error of a learned token), wins, same, losses, gain and interval (share of the
    error that is gone, with its 95 % bounds), strengths ({strength: error}), best_strength, general ({rows, before, after}), seconds.

    Raises:
        BadAdapter: no recipe. BadData, BadModel: what it names cannot be read. WrongBase: the model is not the one it was taught on.
    """
    begun, recipe = time.monotonic(), read_recipe(spec.check().adapter)
    plan = plan_of(recipe)
    yield Progress("Reading the examples")
    material = read_material(plan)
    if material.data_hash != recipe["data"]["sha256"]:
        yield Note("The examples have changed since: the rows held back now are compared.", "warning")
    yield Progress("Loading the model")
    precision = Precision(**recipe["precision"])
    try:
        with exact_computing(precision, best_device()):
            apart = is_wanted(replace(plan, base_bits=16), precision)
            model = load_model(plan.base, dtype=precision.dtype, device="cpu" if apart else best_device())
            stack, base = StackOnBase(model, read_model(plan.base)), [*model.parameters()]
            stack.arrange([StackEntry(spec.adapter)])
            if apart:
                Split(stack.model, base, Team(), best_device())
            comparison = _Comparison(stack, material, run)
            result = yield from comparison.carry_out(spec, plan.system)
    except Cancelled:
        yield Stopped("cancel" if run.asked("cancel") else "pause")
        return
    result = {"adapter": spec.adapter, **result, "seconds": round(time.monotonic() - begun, 1)}
    add_to_recipe(spec.adapter, review={k: v for k, v in result.items() if k != "adapter"})
    yield Finished(result)


class _Comparison:
    """One adapter on its base, and the rows on which it is compared."""

    def __init__(self, stack: StackOnBase, material, run: RunFolder):
        self.stack, self.material, self.run = stack, material, run
        self.objective = Objective(stack.model)

    def carry_out(self, spec: ReviewSpec, system: str) -> Iterator[Event]:
        """Yields events; returns the result."""
        rows, general = self.material.test, self._general(system)
        total = (2 + len(LOWER)) * len(rows) + 2 * len(general)
        scores: dict[float, Scored] = {}
        for strength in (0.0, 1.0, *LOWER):
            scores[strength] = yield from self._score(rows, strength, len(scores) * len(rows), total)
        known = {}
        for number, strength in enumerate((0.0, 1.0)):
            known[strength] = yield from self._score(general, strength, 4 * len(rows) + number * len(general), total)
        before, after = scores[0.0], scores[1.0]
        outcomes = [outcome(before.of(k), after.of(k)) for k in range(len(rows))]
        yield from self._tell(spec, system, before, after, outcomes)
        tried = {f"{strength:g}": score.mean for strength, score in sorted(scores.items()) if strength}
        gain, low, high = interval(before, after) if rows else (0.0, 0.0, 0.0)
        return {"rows": len(rows), "before": before.mean if rows else None, "after": after.mean if rows else None,
                "wins": outcomes.count("win"), "same": outcomes.count("same"), "losses": outcomes.count("loss"),
                "gain": gain, "interval": [low, high], "strengths": tried if rows else {},
                "best_strength": float(min(tried, key=tried.get)) if rows else 1.0,
                "general": {"rows": len(general), "before": known[0.0].mean, "after": known[1.0].mean,
                            "forgotten": known[1.0].mean > known[0.0].mean * (1 + FORGOTTEN)}}

    def _general(self, system: str) -> list[Rendered]:
        lines = resource("samples/general.jsonl").read_text(encoding="utf-8").splitlines()
        pairs = [json.loads(line) for line in lines if line.strip()]
        return [render([{"role": "user", "content": pair["question"]}, {"role": "assistant", "content": pair["answer"]}],
                       self.material.tokenizer, system) for pair in pairs]

    def _score(self, rows: list[Rendered], strength: float, done: int, total: int) -> Iterator[Event]:
        """Yields progress; returns the rows' errors at this strength. One row at a time, so that none leans on another."""
        self.stack.set_strengths([strength])
        errors = []
        for k, row in enumerate(rows):
            self._listen()
            yield Progress("Testing with the skill" if strength else "Testing without the skill", done + k, total, "rows")
            errors.append(self.objective.error(collate([row])))
        return Scored(errors, [row.learned for row in rows])

    def _tell(self, spec: ReviewSpec, system: str, before: Scored, after: Scored, outcomes: list[str]) -> Iterator[Event]:
        """Every row, the worst first; half of the answers go to the worst rows, half are spread over all of them."""
        order = sorted(range(len(outcomes)), key=lambda k: before.of(k) - after.of(k))
        spoken = set(order[:spec.answers // 2]) | set(spread(order[spec.answers // 2:], spec.answers - spec.answers // 2))
        for k in order:
            messages = list(self.material.tested[k].messages)
            asked, wanted = messages[:-1], messages[-1]["content"]
            said = {0.0: "", 1.0: ""}
            if k in spoken and asked:
                if system and asked[0]["role"] != "system":
                    asked = [{"role": "system", "content": system}, *asked]
                for strength in said:
                    self._listen()
                    yield Progress("Answering", sum(o in spoken for o in order[:order.index(k)]), len(spoken), "rows")
                    self.stack.set_strengths([strength])
                    said[strength] = answer(self.stack.model, self.material.tokenizer, asked, max_new_tokens=spec.longest)
            yield Reviewed(self.material.tested[k].line, messages[-2]["content"] if len(messages) > 1 else "", wanted, before.of(k), after.of(k),
                           outcomes[k], said[0.0], said[1.0])

    def _listen(self) -> None:
        if self.run.asked("cancel") or self.run.asked("pause"):
            raise Cancelled()


def outcome(before: float, after: float) -> str:
    """win, same or loss, by the row's own error."""
    return "win" if after < before * (1 - NOTICEABLE) else "loss" if after > before * (1 + NOTICEABLE) else "same"


def spread(items: Sequence[int], count: int) -> list[int]:
    """``count`` of the items, evenly over their order."""
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(min(count, len(items)))] if items else []


def interval(before: Scored, after: Scored) -> tuple[float, float, float]:
    """(gain, low, high): the share of the error that is gone, and between which bounds it lies for other rows of the same kind.

    Bootstrap over rows (Efron 1979): the rows are drawn again, with replacement, `RESAMPLES` times; always the same draws.
    """
    b, a = torch.tensor(before.errors, dtype=torch.float64), torch.tensor(after.errors, dtype=torch.float64)
    draws = torch.randint(len(b), (RESAMPLES, len(b)), generator=torch.Generator().manual_seed(0))
    gains = 1 - a[draws].sum(1) / b[draws].sum(1).clamp_min(1e-12)
    edge = (1 - CONFIDENCE) / 2
    low, high = torch.quantile(gains, torch.tensor([edge, 1 - edge], dtype=torch.float64)).tolist()
    return float(1 - a.sum() / b.sum().clamp_min(1e-12)), low, high
