"""The price of a plan, measured: a few real micro-batches of the real examples through the real model on this machine.

A step's seconds are taken as ``a · computed tokens + b · micro-batches``; a short and a long micro-batch give both. The whole schedule
is then priced exactly as it will run. Memory is that of each graphics card, or of all processes together where there is none, as it grows
during the probe, scaled to the largest micro-batch. A base that is split (`engine.train.fsdp`) waits in main memory while the plan is probed.
A checkpoint's seconds are those of writing a sample of one to the run's own disk.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from engine.errors import OutOfMemory, explain
from engine.specs import PlanReport, TrainSpec
from engine.store.library import read_model
from engine.train import checkpoint as checkpoints
from engine.train import fsdp
from engine.train.batching import Schedule, common_prefix, computed_tokens, micro_batches, portion
from engine.train.launch import wanted
from engine.train.loop import SAMPLE_SHARE, SAVES, evaluation_points, memory_mb
from engine.train.loss import Objective
from engine.train.optim import Optimizer
from engine.train.precision import Precision, choose, exact_computing
from engine.train.prepare import best_device, load_student, read_material, schedule_of
from engine.train.team import Team

PROBE_SECONDS = 6.0                        # a probe stops repeating after this long
SPREAD = 0.1                               # what no probe sees: other programs, a warmer processor
COPIES = 4                                 # of the trained weights in a checkpoint: themselves, two moments of the optimizer, the best state
SAMPLE = 8_000_000                         # numbers of a checkpoint that are written to see how long one takes


@dataclass
class _Cost:
    """Seconds of a step with these rows' lengths, fitted from probes; ``shared`` as in `micro_batches`."""

    token: float
    batch: float
    spread: float                          # relative error of the fit
    shared: int | None
    budget: int                            # padded tokens of a micro-batch at most
    team: int = 1                          # processes that share a step; the slowest counts

    def portions(self, lengths: list[int]) -> list[int]:
        """Computed tokens of each micro-batch."""
        return [computed_tokens([lengths[i] for i in part], self.shared) for part in micro_batches(lengths, self.budget, self.shared)]

    def __call__(self, lengths: list[int]) -> float:
        shares = (Team(rank, self.team).share(lengths) for rank in range(self.team))
        return max(sum(self.token * tokens + self.batch for tokens in self.portions([lengths[i] for i in share])) for share in shares)


def estimate(spec: TrainSpec) -> PlanReport:
    """What the plan will cost here. Raises like `engine.train.loop.train` for a plan that cannot be carried out."""
    spec.check()
    begun = time.monotonic()
    material = read_material(spec)
    precision = choose(spec.precision, best_device())
    _used_mb()                             # on a card, forget what was there before
    before, free = _used_mb(), _free_mb()
    with exact_computing(precision, best_device()):
        schedule = schedule_of(spec, material)
        model = load_student(spec, precision, len(schedule))
        start_up = time.monotonic() - begun
        resting = _used_mb()
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        objective, optimizer = Objective(model, spec.checkpointing == "on"), Optimizer(parameters, 1e-6, 0.0, spec.optimizer)
        lengths = [len(row.ids) for row in material.learn]
        try:
            step, peak, probed = _probe(model, objective, optimizer, material, schedule)
        except (MemoryError, RuntimeError) as problem:
            raise (shortage if isinstance(shortage := explain(problem), OutOfMemory) else problem) from problem
    step.team = wanted(spec)
    cards = step.team if best_device() == "cuda" else 0
    seconds, tokens, widest = 0.0, 0, 0
    for k in range(len(schedule)):
        of_step = [lengths[i] for i in schedule[k]]
        seconds, tokens = seconds + step(of_step), tokens + sum(of_step)
        widest = max(widest, *step.portions(of_step))
    teaching = seconds
    if material.test:                      # a forward alone costs about a third of a step
        tested = [len(row.ids) for row in material.test]
        seconds += len(evaluation_points(schedule, tested)) * step(tested) / 3
    if spec.prompts:
        seconds += teaching * SAMPLE_SHARE / 2
    trainable = sum(p.numel() for p in parameters.values())
    saves = max(min(SAVES, len(schedule)), int(seconds // spec.checkpoint_seconds))
    seconds += saves * _saving(trainable, Path(spec.out).parent)
    megabytes = trainable * 4 / 1e6
    memory = _needed(max(resting - before, 0), max(peak - resting, 0) * max(1.0, widest / probed), step.team,
                     _size_mb(spec, precision) if fsdp.is_wanted(spec, precision) else None)
    if not cards:
        memory += 2 * megabytes            # the best state, and the one on its way to the disk
    error = seconds * (SPREAD + step.spread) + 1
    report = PlanReport(rows=len(material.learn), steps=len(schedule), tokens=tokens, seconds=round(seconds + start_up, 1),
                        seconds_error=round(error, 1), memory_mb=round(memory, 1), free_memory_mb=round(free, 1), cards=cards,
                        disk_mb=round(megabytes * (1 + 4 * (checkpoints.KEPT + 1)), 1), trainable=trainable)
    report.sentence = (f"About {_duration(report.seconds)} ± {_duration(error)}, {_size(memory)} of {_size(report.free_memory_mb)} free memory, "
                       f"{spec.passes:g} {'pass' if spec.passes == 1 else 'passes'} over {len(material.learn):,} examples.")
    if cards > 1:
        report.sentence = f"{report.sentence} The memory is that of each of {cards} graphics cards."
    return report


def _probe(model, objective: Objective, optimizer: Optimizer, material, schedule: Schedule) -> tuple[_Cost, float, int]:
    """Time real micro-batches: (cost, peak memory in MB, padded tokens of the largest probe). Teaches nothing that is kept."""
    longest_first = sorted(material.learn, key=lambda row: -len(row.ids))
    of_first = [material.learn[i] for i in schedule[0]]
    shared = common_prefix(of_first) if objective.shares(of_first) else None
    budget = portion([len(row.ids) for row in material.learn])
    parts = micro_batches([len(row.ids) for row in of_first], budget, shared)
    batches = [objective.collate(rows) for rows in (longest_first[:1], [of_first[i] for i in parts[-1]], longest_first[-1:])]
    times: dict[int, list[float]] = {}
    model.train()
    peak, begun = _used_mb(), time.monotonic()
    for turn in range(4):
        for k, batch in enumerate(batches):
            if turn > 1 and time.monotonic() - begun > PROBE_SECONDS:
                break
            start = time.monotonic()
            objective.backward(batch, batch.learned)
            if turn:                       # the first time also pays for setting up
                times.setdefault(k, []).append(time.monotonic() - start)
            peak = max(peak, _used_mb())
    start = time.monotonic()
    optimizer.step(1.0)
    correction = time.monotonic() - start
    points = [(batches[k].ids.numel(), min(found), max(found)) for k, found in times.items()]
    small, large = min(points), max(points)
    token = max((large[1] - small[1]) / max(large[0] - small[0], 1), 1e-9) if large[0] > small[0] else large[1] / large[0]
    fixed = max(large[1] - token * large[0], 0.0) + correction / len(parts)
    spread = sum(worst - best for _, best, worst in points) / max(sum(best for _, best, _ in points), 1e-9) / 2
    return _Cost(token, fixed, min(spread, 0.5), shared, budget), max(peak, _used_mb()), large[0]


def _saving(numbers: int, where: Path) -> float:
    """Seconds that one checkpoint of so many trained numbers takes, told by writing a part of one near ``where``."""
    part = min(COPIES * numbers, SAMPLE)
    state = checkpoints.Checkpoint(0, {"sample": torch.zeros(part)}, {}, {}, {}, {})
    near = next((folder for folder in (where, *where.parents) if folder.is_dir()), None)
    try:
        with tempfile.TemporaryDirectory(prefix=".price-", dir=near) as folder:
            start = time.monotonic()
            checkpoints.save(Path(folder), state)
            return (time.monotonic() - start) * COPIES * numbers / max(part, 1)
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
