"""The price of a plan, measured: some of its own micro-batches, with the real examples, through the real model on this machine.

The schedule is a pure function, so every micro-batch of the training is known beforehand. The widest one tells the memory, some others, from
narrow to wide, the seconds as ``a · computed tokens + b``; each is a new one, as in the training, where first-time kernels cost as well. The
whole schedule is then priced exactly as it will run. Memory is that of each graphics card, or of all processes together where there is none,
as it grows during the probe. A base that is split (`engine.train.fsdp`) waits in main memory while the plan is probed.
A checkpoint's seconds are those of writing a sample of one to the run's own disk.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from engine.data.render import Rendered
from engine.errors import BadData, Diverged, OutOfMemory, explain
from engine.generate.sampling import answer
from engine.specs import PlanReport, TrainSpec
from engine.store.library import read_model
from engine.train import checkpoint as checkpoints
from engine.train import fsdp
from engine.train.batching import common_prefix, computed_tokens, micro_batches, portion
from engine.train.launch import wanted
from engine.train.loop import SAMPLE_SHARE, SAMPLE_TOKENS, SAVES, evaluation_points, memory_mb
from engine.train.loss import Objective
from engine.train.optim import Optimizer
from engine.train.precision import Precision, choose, exact_computing
from engine.train.prepare import best_device, load_student, read_material, schedule_of
from engine.train.team import Team

PROBE_SECONDS = 6.0                        # a probe tries no more micro-batches after this long …
AT_LEAST = 3                               # … but so many it does
LOOKED_AT = 256                            # steps from which they are taken
SPREAD = 0.1                               # what no probe sees: other programs, a warmer processor
COPIES = 4                                 # of the trained weights in a checkpoint: themselves, two moments of the optimizer, the best state
LISTENED = 12                              # tokens of a sample answer that are tried
SAMPLE = 8_000_000                         # numbers of a checkpoint that are written to see how long one takes


class _Work:
    """The micro-batches of any step of these rows, as the training will cut it."""

    def __init__(self, rows: list[Rendered], objective: Objective, budget: int, team: int):
        self.rows, self.objective, self.budget, self.team = rows, objective, budget, team

    def shares(self, places: list[int]) -> list[list[list[int]]]:
        """For each process its micro-batches of these rows."""
        lengths, found = [len(self.rows[i].ids) for i in places], []
        for rank in range(self.team):
            mine = Team(rank, self.team).share(lengths)
            cut = micro_batches([lengths[i] for i in mine], self.budget, self._shared([places[i] for i in mine]))
            found.append([[places[mine[i]] for i in part] for part in cut])
        return found

    def size(self, part: list[int]) -> int:
        """Its computed tokens."""
        return computed_tokens([len(self.rows[i].ids) for i in part], self._shared(part))

    def loads(self, shares: list[list[list[int]]]) -> list[tuple[int, int]]:
        """For each process the computed tokens and the number of its micro-batches."""
        return [(sum(map(self.size, share)), len(share)) for share in shares]

    def _shared(self, places: list[int]) -> int | None:
        rows = [self.rows[i] for i in places]
        return common_prefix(rows) if rows and self.objective.shares(rows) else None


@dataclass(frozen=True)
class _Cost:
    """What was found out: seconds of a micro-batch are ``token · computed tokens + batch``."""

    token: float
    batch: float
    correction: float                      # seconds of the optimizer in each step
    forward: float                         # share of them that a forward pass alone takes
    set_up: float                          # what the very first one took longer
    spread: float                          # relative error of the fit
    peak: float                            # megabytes

    def __call__(self, loads: list[tuple[int, int]]) -> float:
        """Seconds for what each process has to do; see `_Work.loads`."""
        return max(self.token * tokens + self.batch * batches for tokens, batches in loads)


def estimate(spec: TrainSpec) -> PlanReport:
    """What the plan will cost here. Raises like `engine.train.loop.train` for a plan that cannot be carried out."""
    spec.check()
    begun = time.monotonic()
    material = read_material(spec)
    _used_mb()                             # on a card, forget what was there before
    before, free = _used_mb(), _free_mb()
    precision = choose(spec.precision, best_device())
    with exact_computing(precision, best_device()):
        schedule = schedule_of(spec, material)
        model = load_student(spec, precision, len(schedule))
        resting = _used_mb()
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        objective, optimizer = Objective(model, spec.checkpointing == "on"), Optimizer(parameters, 1e-6, 0.0, spec.optimizer)
        start_up = time.monotonic() - begun
        work = _Work(material.learn, objective, portion(schedule.lengths), wanted(spec))
        steps = [work.shares(schedule[k]) for k in range(len(schedule))]
        try:
            cost = _probe(model, objective, optimizer, material.learn, _telling(work, steps))
            listening = _listening(spec, model, material.tokenizer)
        except (MemoryError, RuntimeError) as problem:
            raise (shortage if isinstance(shortage := explain(problem), OutOfMemory) else problem) from problem
    cards = work.team if best_device() == "cuda" else 0
    teaching = seconds = sum(cost(work.loads(shares)) + cost.correction for shares in steps)
    if material.test:
        tests = _Work(material.test, objective, work.budget, work.team)
        once = cost(tests.loads(tests.shares([*range(len(material.test))]))) * cost.forward
        seconds += len(evaluation_points(schedule, [len(row.ids) for row in material.test])) * once
    taught = listening * min(1.0, sum(row.learned for row in material.learn) / len(material.learn) / SAMPLE_TOKENS)   # it learns when to end
    seconds += listening + max(0.0, min(SAVES * taught, teaching * SAMPLE_SHARE - listening)) + taught     # before, in between, after
    trainable = sum(p.numel() for p in parameters.values())
    saves = max((len(schedule) - 1) // max(1, len(schedule) // SAVES), int(seconds // spec.checkpoint_seconds))
    seconds += saves * _saving(trainable, Path(spec.out).parent)
    megabytes = trainable * 4 / 1e6
    memory = _needed(max(resting - before, 0), max(cost.peak - resting, 0), work.team,
                     _size_mb(spec, precision) if fsdp.is_wanted(spec, precision) else None)
    if not cards:
        memory += 2 * megabytes            # the best state, and the one that takes its place
    error = seconds * (SPREAD + cost.spread) + 1
    tokens = sum(schedule.lengths[i] for k in range(len(schedule)) for i in schedule[k])
    report = PlanReport(rows=len(material.learn), steps=len(schedule), tokens=tokens, seconds=round(seconds + start_up + cost.set_up, 1),
                        seconds_error=round(error, 1), memory_mb=round(memory, 1), free_memory_mb=round(free, 1), cards=cards,
                        disk_mb=round(megabytes * (1 + 4 * (checkpoints.KEPT + 1)), 1), trainable=trainable)
    report.sentence = (f"About {_duration(report.seconds)} ± {_duration(error)}, {_size(memory)} of {_size(report.free_memory_mb)} free memory, "
                       f"{spec.passes:g} {'pass' if spec.passes == 1 else 'passes'} over {len(material.learn):,} examples.")
    if cards > 1:
        report.sentence = f"{report.sentence} The memory is that of each of {cards} graphics cards."
    return report


def _listening(spec: TrainSpec, model, tokenizer) -> float:
    """Seconds for one round of answers to the pinned questions, each as long as it may be: a few of its tokens are tried."""
    if not spec.prompts:
        return 0.0

    def said(tokens: int) -> float:
        begun = time.monotonic()
        answer(model, tokenizer, [{"role": "user", "content": spec.prompts[0]}], max_new_tokens=tokens)
        return time.monotonic() - begun
    try:
        said(1)                            # what the very first one takes longer
        one, few = said(1), said(LISTENED)
    except (BadData, Diverged):            # the training says so, and goes on
        return 0.0
    return len(spec.prompts) * (one + max(few - one, 0) / (LISTENED - 1) * (SAMPLE_TOKENS - 1))


def _telling(work: _Work, steps: list[list[list[list[int]]]]) -> list[list[int]]:
    """Micro-batches to try: a middling one to set up with, the widest of all, then some evenly between narrow and wide, the most telling first.

    ``steps``: for each step the micro-batches of each process.
    """
    among = sorted((part for shares in steps[:LOOKED_AT] for share in shares for part in share), key=work.size)
    widest = max((part for shares in steps for share in shares for part in share), key=work.size)
    middle, *others = (among[len(among) * k // 16] for k in (8, 1, 15, 4, 12, 6, 10))
    return [middle, widest, *others]


def _probe(model, objective: Objective, optimizer: Optimizer, rows: list[Rendered], parts: list[list[int]]) -> _Cost:
    """Time real micro-batches. Teaches nothing that is kept."""
    model.train()
    points: list[tuple[int, float]] = []
    peak, begun = _used_mb(), time.monotonic()
    for part in parts:
        if len(points) >= AT_LEAST and time.monotonic() - begun > PROBE_SECONDS:
            break
        batch, start = objective.collate([rows[i] for i in part]), time.monotonic()
        objective.backward(batch, batch.learned)
        points.append((batch.ids.numel(), time.monotonic() - start))
        peak = max(peak, _used_mb())
        if len(points) < 3:                # the first time makes the optimizer's state, which is there in the rest of the training
            start = time.monotonic()
            optimizer.step(1.0)
            correction = time.monotonic() - start
    model.eval()
    start = time.monotonic()
    objective.error(batch)
    alone = time.monotonic() - start
    token, fixed, spread = _fitted(points[1:])
    return _Cost(token, fixed, correction, min(alone / points[-1][1], 1.0), max(0.0, points[0][1] - token * points[0][0] - fixed), spread,
                 max(peak, _used_mb()))


def _fitted(points: list[tuple[int, float]]) -> tuple[float, float, float]:
    """(a, b, relative error) of the line ``seconds = a · tokens + b`` with the least sum of errors: one slow moment does not bend it."""
    def error(line: tuple[float, float]) -> float:
        return sum(abs(line[0] * n + line[1] - s) for n, s in points)

    lines = [(s / n, 0.0) for n, s in points]
    for (n, s), (m, r) in itertools.combinations(points, 2):
        slope = (r - s) / (m - n) if m != n else 0.0
        lines += [(slope, s - slope * n)] if slope >= 0 and s >= slope * n else []
    best = min(lines, key=error)
    return *best, min(0.5, error(best) / sum(s for _, s in points))


def _saving(numbers: int, where: Path) -> float:
    """Seconds that one checkpoint of so many trained numbers takes, told by writing an empty one and a part of one near ``where``."""
    part = min(COPIES * numbers, SAMPLE)
    near = next((folder for folder in (where, *where.parents) if folder.is_dir()), None)

    def seconds(numbers: int) -> float:
        state = checkpoints.Checkpoint(0, {"sample": torch.zeros(numbers)}, {}, {}, {}, {})
        with tempfile.TemporaryDirectory(prefix=".price-", dir=near) as folder:
            start = time.monotonic()
            checkpoints.save(Path(folder), state)
            return time.monotonic() - start

    try:
        empty = seconds(1)
        return empty + max(0.0, seconds(part) - empty) * COPIES * numbers / part
    except OSError:                        # a full disk: that is for the training to say, which needs much more
        return 0.0


def _needed(resting: float, growth: float, team: int, split: float | None) -> float:
    """Megabytes of each card, or of all processes together, from what one process took alone. ``split``: of a base that is split."""
    if best_device() == "cpu":             # that base waited here, all of it; each process will have its share
        return team * (resting + growth) if split is None else resting + team * growth
    return resting + growth + (split / team if split is not None and team > 1 else 0)


def _size_mb(spec: TrainSpec, precision: Precision) -> float:
    return read_model(spec.base).parameters * precision.torch_dtype.itemsize / 1e6


def _used_mb() -> float:
    """What this process takes of the memory that is priced; on a card the most that it took since it was last asked."""
    if best_device() == "cpu":
        return memory_mb()
    most = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return most / 1e6


def _free_mb() -> float:
    if best_device() == "cpu":
        return psutil.virtual_memory().available / 1e6
    return min(torch.cuda.mem_get_info(card)[0] for card in range(torch.cuda.device_count())) / 1e6


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _size(megabytes: float) -> str:
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{max(1, round(megabytes))} MB"
