"""The training loop, to be read in one sitting: `train` sets the stage, `Training.run` is the play.

Between two steps (and two micro-batches) it listens for pause, cancel and sample. Everything that decides about numbers is a function of
(spec, data, step, and the turns that `engine.train.course` has written down), or is in the checkpoint; so a run that was killed and goes on
ends in the same bytes as one that was not.
Several processes are the same loop (`engine.train.team`): each has its share of a step's rows, and the first one's events are the job's.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from functools import lru_cache

import psutil
import torch

from engine.errors import BadData, Diverged, OutOfMemory, StudioError, explain
from engine.events import Evaluated, Event, Finished, Note, Progress, Sample, Saved, Step, Stopped
from engine.generate.sampling import answer
from engine.specs import TrainSpec
from engine.store.runs import RunFolder
from engine.train import checkpoint as checkpoints
from engine.train import finish, fsdp, runaway
from engine.train.batching import Batch, Schedule, portion
from engine.train.course import Course
from engine.train.loss import Objective
from engine.train.optim import Optimizer, learning_rate
from engine.train.precision import exact_computing
from engine.train.prepare import Material, best_device, load_student, read_material, schedule_of, settled_precision
from engine.train.presets import method_settings
from engine.train.team import Team

EVALUATIONS, EVALUATION_SHARE = 10, 0.2    # through the run, besides the one of the untouched base; fewer if they would cost more than this
PATIENCE = 3                               # evaluations in a row without a better one, after which an early stop ends the run
SAVES = 10                                 # checkpoints in a run at least, as far as it has so many steps
SCHEDULE = "schedule/"                     # before the names of a schedule's tensors (AdaLoRA's, AdaMSS's) in a checkpoint
SAMPLE_TOKENS, SAMPLE_SHARE = 60, 0.15     # length of a sample answer; share of the time that samples in between may cost


def train(spec: TrainSpec, run: RunFolder, team: Team | None = None) -> Iterator[Event]:
    """Teach one adapter. A job (see `engine.store.runs`): yields events, ends with `Finished` or `Stopped`.

    ``Finished.result``: adapter (folder), steps, error_before, error_after (on unseen examples, of the kept state; None without held-out
    rows), best_step, rows, held_out, seconds, fingerprint (SHA-256 of the weights file).

    Raises:
        BadData, BadModel, InvalidSpec: before anything is computed. Diverged: the error is no number; the last good checkpoint is kept,
            and with `RunFolder.slow_down` the run goes on from there.
        OutOfMemory: even one example at a time does not fit. DiskFull: the checkpoint before it is kept.
    """
    spec.check()
    team = team or Team()
    if (result := team.lead(lambda: finish.earlier_result(spec, run))) is not None:   # killed between the last rename and the last word
        yield Finished(result)
        return
    yield Progress("Reading the examples")
    material = read_material(spec)
    yield Note(material.sentence)
    for text in material.notes:
        yield Note(text, "warning")
    yield Progress("Loading the model")
    precision = team.lead(lambda: settled_precision(spec, run))
    yield Note(precision.sentence if team.size == 1 else f"{precision.sentence} {team.size} processes share the examples of each step.")
    if fsdp.is_wanted(spec, precision):
        yield Note("The model waits in main memory and is brought block by block." if team.size == 1 else
                   f"The model is split: each process keeps one part in {team.size} and gets the rest block by block.")
    with exact_computing(precision, best_device()):
        model = load_student(spec, precision, len(schedule_of(spec, material)), team)         # alike for all
        if team.rank:
            torch.manual_seed(spec.seed + team.rank)           # but dropout falls for each in its own way
        yield from Training(spec, run, material, model, team).run()


class _Interrupted(StudioError):
    """Somebody asked to stop; ``what`` is "pause" or "cancel"."""

    code = "interrupted"


class Training:
    """One run. ``step`` counts finished steps; what `_state` names is all that survives a kill."""

    def __init__(self, spec: TrainSpec, run: RunFolder, material: Material, model, team: Team):
        self.spec, self.run_folder, self.material, self.model, self.team = spec, run, material, model, team
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.schedule = schedule_of(spec, material)
        self.course = Course(run.path, self.schedule, spec.warmup)
        self.objective = Objective(model, spec.checkpointing == "on")
        hidden = model.get_base_model().get_input_embeddings().weight.shape[1]
        rate = spec.learning_rate or learning_rate(spec.method, method_settings(spec), hidden)
        self.optimizer = Optimizer(self.parameters, rate, spec.weight_decay, spec.optimizer)
        tested = [len(row.ids) for row in material.test]
        self._points = lru_cache(maxsize=1)(lambda steps: evaluation_points(self.schedule, tested, steps))
        self.portion = portion(self.schedule.lengths)          # computed tokens in one micro-batch; halved when memory runs out
        self.save_every = max(1, len(self.schedule) // SAVES)
        self.step, self.best = 0, {}
        self.errors: list[float] = []      # of every step
        self.evaluations: list[list] = []  # [step, error on unseen examples]
        self.seconds = 0.0                 # worked in all attempts
        self._clock = self._saved_at = time.monotonic()
        self._step_seconds = self._sample_seconds = self._evaluation_seconds = 0.0
        self._steps_here = 0

    # --- the play ---

    def run(self) -> Iterator[Event]:
        yield from self._resume()
        try:
            while True:
                yield from self._turn()
                if self._evaluation_is_due():
                    yield from self._evaluate()
                if self.over:
                    break
                self.team.together(self._listen)
                if self.team.lead(self._save_is_due):
                    yield from self._save()
                if self.team.lead(lambda: self.run_folder.asked("sample")):
                    self.run_folder.clear("sample")
                    yield from self._sample(always=True)
                yield from self._one_step()
            yield Progress("Saving the adapter", self.step, self.steps, "steps", 0.0)
            yield from self._finish()
        except _Interrupted as request:
            self.optimizer.forget()
            if self.step != self._saved_step:
                yield from self._save()
            yield Stopped(request.what, resumable=True, step=self.step)
        except (MemoryError, RuntimeError, OSError) as error:
            raise explain(error) from error

    @property
    def over(self) -> bool:
        """All steps done, asked to finish, or the unseen error did not get better for a while (an equal error is not better)."""
        return self._at_the_end or (self.spec.early_stop and self._since_best() >= PATIENCE)

    @property
    def _at_the_end(self) -> bool:
        return self.course.ended(self.step) or self.step >= self.steps

    @property
    def steps(self) -> int:
        """How long the run is, with the time that was added up to now."""
        return self.course.steps(self.step)

    def _turn(self) -> Iterator[Event]:
        """Hear what was wished for, and say what changes from this step on."""
        self.course.turns = self.team.lead(lambda: self.course.hear(self.step, self.run_folder))
        for _, what, value in self.course.at(self.step):
            if what == "extend":
                yield Note(f"Time was added: {value:g} {'pass' if value == 1 else 'passes'} more, {self.steps} steps in all.", step=self.step)
            elif what == "slow":
                yield Note(f"From here it learns at {value:g} times the speed.", step=self.step)

    def _listen(self) -> None:
        for request in ("cancel", "pause"):
            if self.run_folder.asked(request):
                raise _Interrupted(request)

    # --- one step ---

    def _one_step(self) -> Iterator[Event]:
        start, places = time.perf_counter(), self.schedule.rows_of(self.step)
        rows = [self.material.learn[i] for i in places]
        learned = sum(row.learned for row in rows)
        self.model.train()
        error = yield from self._in_portions("portion", rows, lambda: self._gradients(rows, learned))
        factor = self.course.speed(self.step)
        if not math.isfinite(error) or not math.isfinite(self.optimizer.step(
                factor, lambda: self.model.on_step(self.step + 1))):
            yield from self._run_away(self.step + 1, factor, rows, [self.material.lines[i] for i in places])
        self.step += 1
        self.errors.append(error)
        seconds = time.perf_counter() - start                  # never 0: Windows' monotonic clock ticks every 16 ms
        self._steps_here += 1
        self._step_seconds += seconds
        tokens = sum(len(row.ids) for row in rows)
        yield Step(self.step, self.steps, error, self.optimizer.rate * factor, tokens, tokens / seconds, memory_mb(),
                   self._seconds_left(), self.step / self.schedule.per_pass)

    def _gradients(self, rows: list, learned: int) -> float:
        """Gradients of the whole step, on every process. Returns the mean error of a learned token in nats."""
        error = sum(self.team.together(lambda: self._accumulate(rows, learned))) / learned
        self.team.add_gradients([*self.parameters.values()])
        return error

    def _accumulate(self, rows: list, learned: int) -> float:
        """Gradients of this process's part of the step, micro-batch by micro-batch. Returns its summed error in nats."""
        total = 0.0
        for batch in self._batches(rows, "portion"):
            self._listen()
            total += self.objective.backward(batch, learned)
        if self.team.leads and (more := self.model.extra_loss()) is not None:     # of the adapter's tensors alone
            more.backward()
        return total

    def _batches(self, rows: list, kind: str) -> Iterator[Batch]:
        """This process's share of the rows, in micro-batches; ``kind`` as in `Course.portion`."""
        mine = [rows[i] for i in self.team.share([len(row.ids) for row in rows])]
        return self.objective.batches(mine, self.course.portion(self.step, kind, self.portion))

    def _in_portions(self, kind: str, rows: list, work: Callable[[], float]) -> Generator[Event, None, float]:
        """What ``work`` finds out about the rows; if memory runs out, in smaller portions. ``kind`` as in `Course.portion`."""
        while True:
            before = checkpoints.generators()  # dropout of a step that is repeated falls as it fell
            try:
                return work()
            except _Interrupted:
                checkpoints.restore_generators(before)
                raise
            except (MemoryError, RuntimeError) as problem:
                self.optimizer.forget()
                checkpoints.restore_generators(before)
                yield self._smaller(problem, kind, max(len(row.ids) for row in rows), len(rows))

    def _smaller(self, problem: Exception, kind: str, longest: int, rows: int) -> Note:
        """After memory ran out: half as many tokens at a time, the same examples in each step."""
        shortage, size = explain(problem), self.course.portion(self.step, kind, self.portion)
        if not isinstance(shortage, OutOfMemory):
            raise problem
        if size <= longest or rows == 1:
            if self.spec.checkpointing == "auto" and self.objective.checkpoint():
                return Note("Memory ran out, so from now on more is computed twice and less is remembered. The result stays the same.", "warning",
                            self.step)
            raise OutOfMemory("The computer's memory is too small for this training.", "Not even one example at a time fits.",
                              "Close other programs, choose a smaller model, or lower “Longest example”.", details=shortage.details) from problem
        self.course.turns = self.team.lead(lambda: self.course.take(self.step, kind, size // 2))
        return Note(f"Memory ran out, so examples are now taken in smaller portions ({size // 2} tokens). The result stays the same.",
                    "warning", self.step)

    def _run_away(self, step: int, factor: float, rows: list, lines: list[int]) -> Iterator[Event]:
        """The error is no number: go back to the last good checkpoint, say so. Raises `Diverged`."""
        self.optimizer.forget()
        slowed = [turn.step for turn in self.course.turns if turn.what == "slow"]
        good = self.team.lead(lambda: runaway.go_back(self.run_folder.checkpoints, self.errors, slowed))
        at = 0 if good is None else checkpoints.step_of(good)
        yield Saved(at, str(good or ""))   # the last one that there is
        to_blame = self.team.lead(lambda: runaway.numberless(self.model, self.objective, rows))
        error = runaway.told(step, self.optimizer.rate * factor, at, [lines[place] for place in to_blame])
        yield Note(error.what, "warning", self.step)
        raise error

    # --- unseen examples and samples ---

    def _evaluation_is_due(self) -> bool:
        done = self.evaluations[-1][0] if self.evaluations else -1
        return done < self.step and (self.step in self._points(self.steps) or (self._at_the_end and bool(self.material.test)))

    def _evaluate(self) -> Iterator[Event]:
        start = time.monotonic()
        self.model.eval()
        if self.step == 0:
            yield Progress("Testing the untouched model", 0, self.steps, "steps")
        with contextlib.nullcontext() if self.step else self.model.disable_adapter():
            error = yield from self._tested(self.material.test, [row.line for row in self.material.tested])
        self.evaluations.append([self.step, error])
        best = self._best() == [self.step, error]
        if best:
            self.best = {name: p.detach().to("cpu", copy=True) for name, p in self.parameters.items()}
        self._evaluation_seconds = time.monotonic() - start
        yield Evaluated(self.step, error, len(self.material.test), best)
        if not self.over:                  # the last word is the kept state's
            yield from self._sample(always=self.step == 0)

    def _tested(self, rows: list, lines: list[int]) -> Generator[Event, None, float]:
        """The mean error of a learned token of these rows, which stand in these lines, in nats. Raises `Diverged` if it is no number."""
        def of_mine() -> float:
            total = 0.0
            for batch in self._batches(rows, "test portion"):
                self._listen()
                total += self.objective.error(batch)
            return total

        learned = sum(row.learned for row in rows)
        error = yield from self._in_portions("test portion", rows, lambda: sum(self.team.together(of_mine)) / learned)
        if not math.isfinite(error):
            yield from self._run_away(self.step, self.course.speed(max(0, self.step - 1)), rows, lines)
        return error

    def _best(self) -> list | None:
        """[step, error] of the best evaluation; the untouched base is no candidate, it is what was there before."""
        return min((e for e in self.evaluations if e[0] > 0), key=lambda e: (e[1], e[0]), default=None)

    def _since_best(self) -> int:
        """Evaluations without a better one; where time was added, patience begins anew."""
        best = self._best()
        return sum(e[0] > max(best[0], self.course.extended_at(self.step)) for e in self.evaluations) if best else 0

    def _sample(self, always: bool) -> Iterator[Event]:
        """Answers to the pinned questions; in between only while they cost little time. They touch nothing that is learned."""
        if not self.spec.prompts or not always and self.team.lead(lambda: self._sample_seconds > SAMPLE_SHARE * self._step_seconds):
            return
        start = time.monotonic()
        for prompt in self.spec.prompts:
            self.team.together(self._listen)
            try:
                said = self.team.lead(lambda prompt=prompt: self._answer(prompt))
            except (BadData, Diverged) as problem:             # too long, or no number: what was learned is not lost by it
                yield Note(problem.what, "warning", self.step)
                continue
            yield Sample(self.step, prompt, said)
        self._sample_seconds += time.monotonic() - start

    def _answer(self, prompt: str) -> str:
        system = [{"role": "system", "content": self.spec.system}] if self.spec.system else []
        return answer(self.model, self.material.tokenizer, [*system, {"role": "user", "content": prompt}], max_new_tokens=SAMPLE_TOKENS)

    # --- checkpoints ---

    def _save_is_due(self) -> bool:
        return self._steps_here > 0 and self.step != self._saved_step and (
            self.step % self.save_every == 0 or time.monotonic() - self._saved_at >= self.spec.checkpoint_seconds)

    def _save(self) -> Iterator[Event]:
        generators = self.team.together(checkpoints.generators)
        try:
            path = self.team.lead(lambda: str(checkpoints.save(self.run_folder.checkpoints, self._state(generators))))
        except OSError as error:
            raise explain(error) from error
        self._saved_at, self._saved_step = time.monotonic(), self.step
        yield Saved(self.step, path)

    def _state(self, generators: list[dict]) -> checkpoints.Checkpoint:
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        optimizer = {name: tensor.detach().cpu() for name, tensor in self.optimizer.state().items()}
        optimizer |= {SCHEDULE + name: tensor.detach().cpu() for name, tensor in self.model.tuner.schedule_state().items()}
        adapter = {name: p.detach().cpu() for name, p in self.parameters.items()}         # written before anything changes them
        return checkpoints.Checkpoint(self.step, adapter, optimizer, self.best, {
            "errors": self.errors, "evaluations": self.evaluations, "seconds": self.seconds}, self.material.identity, generators)

    _saved_step = -1

    def _resume(self) -> Iterator[Event]:
        self.team.lead(lambda: checkpoints.sweep(self.run_folder.checkpoints))
        state, notes = checkpoints.newest(self.run_folder.checkpoints, self.material.identity)
        for text in notes:
            yield Note(text, "warning")
        if notes:                          # the last one that there is
            yield Saved(state.step, str(checkpoints.place(self.run_folder.checkpoints, state.step))) if state else Saved(0, "")
        if state is None:
            return
        self._put(state.adapter)
        self.optimizer.restore({name: t for name, t in state.optimizer.items() if not name.startswith(SCHEDULE)})
        self.model.tuner.restore_schedules({n.removeprefix(SCHEDULE): t for n, t in state.optimizer.items() if n.startswith(SCHEDULE)})
        self.step, self.best = state.step, state.best
        self.errors, self.evaluations, self.seconds = state.progress["errors"], state.progress["evaluations"], state.progress["seconds"]
        self._saved_step = self.step
        if self.team.rank < len(state.generators):
            checkpoints.restore_generators(state.generators[self.team.rank])
        if len(state.generators) != self.team.size:
            yield Note(f"{self.team.size} {'process goes' if self.team.size == 1 else 'processes go'} on with what {len(state.generators)} began: "
                       "it is taught as planned, but what is left to chance falls otherwise.", "warning", self.step)
        yield Note(f"Going on from step {self.step}.", step=self.step)

    @torch.no_grad()
    def _put(self, weights: dict) -> None:
        for name, p in self.parameters.items():
            p.copy_(weights[name])

    # --- the end ---

    def _finish(self) -> Iterator[Event]:
        self.model.eval()
        if not self.material.test:         # nobody has tried the last state yet: it might be no good
            places = self.schedule.rows_of(self.step - 1)
            yield from self._tested([self.material.learn[i] for i in places], [self.material.lines[i] for i in places])
        best, kept = self._best(), self.step
        if self.spec.early_stop and best and best[0] != self.step:
            kept = best[0]
            self._put(self.best)
            yield Note(f"The state of step {kept} is kept: there the error on unseen examples was lowest.", step=kept)
        before = self.evaluations[0][1] if self.evaluations and self.evaluations[0][0] == 0 else None
        after = next((error for step, error in reversed(self.evaluations) if step == kept), None)
        if before is not None and after is not None and after >= before:
            yield Note("The adapter does not answer unseen examples better than the untouched model.", "warning", kept)
        yield from self._sample(always=True)
        seconds = self.seconds + time.monotonic() - self._clock
        result = {"steps": self.step, "error_before": before, "error_after": after, "best_step": kept, "rows": len(self.material.learn),
                  "held_out": len(self.material.test), "seconds": round(seconds, 1)}
        yield Finished(self.team.lead(lambda: finish.place(self.spec, self.run_folder, self.model, self.material, result, self.optimizer.rate,
                                                           self.evaluations, self.course.until(self.step))))

    def _seconds_left(self) -> float:
        each = self._step_seconds / self._steps_here
        to_evaluate = sum(point > self.step for point in self._points(self.steps))
        return (self.steps - self.step) * each + to_evaluate * self._evaluation_seconds


def evaluation_points(schedule: Schedule, tested: list[int], steps: int = 0) -> set[int]:
    """Steps after which the unseen examples (of these lengths) are tried: evenly spaced, the first at 0, none without such examples.

    ``steps``: where the run is longer than its schedule; the distances stay.

    A function of lengths alone, for the best state must not depend on the clock; an evaluated token costs a third of a learned one.
    """
    if not tested:
        return set()
    learned = sum(schedule.lengths) * len(schedule) / schedule.per_pass
    count = max(2, min(EVALUATIONS, round(EVALUATION_SHARE * 3 * learned / sum(tested))))
    steps = steps or len(schedule)
    return {round(len(schedule) * k / count) for k in range(math.ceil(count * steps / len(schedule)))} | {steps}


def memory_mb() -> float:
    """Resident memory of this process in megabytes."""
    return psutil.Process().memory_info().rss / 1e6
