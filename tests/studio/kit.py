"""A small world for panels without torch: a library of header-only files, a real queue with scripted work, a talk with scripted answers."""

from __future__ import annotations

import itertools
import json
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from engine import events, specs
from engine.errors import StudioError
from engine.store.home import Home
from engine.store.library import read_model
from studio.core.catalogue import Catalogue
from studio.core.settings import Settings
from studio.core.stack_document import StackDocument
from studio.jobs.bridge import QueueBridge, TalkBridge
from studio.jobs.queue import JobQueue
from studio.jobs.runner import InlineRunner
from studio.jobs.store import JobStore
from studio.jobs.talk import Done, Failed
from studio.models.undo import UndoStack


def safetensors(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """Write float32 zeros in the safetensors format."""
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = 4
        for n in shape:
            size *= n
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))


def make_model(home: Home, name: str = "Tiny-Instruct", hidden: int = 32, template: bool = True) -> Path:
    folder = home.models / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": hidden, "architectures": ["LlamaForCausalLM"]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"} if template else {}))
    safetensors(folder / "model.safetensors", {f"model.layers.{i}.self_attn.q_proj.weight": (hidden, hidden) for i in range(2)})
    return folder


def make_adapter(home: Home, base: Path, name: str = "Shop answers", hidden: int = 32, rank: int = 4) -> Path:
    folder = home.adapters / name
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank,
                                                            "target_modules": ["q_proj"],
                                                            "base_model_name_or_path": str(base)}))
    stem = "base_model.model.model.layers.0.self_attn.q_proj."
    safetensors(folder / "adapter_model.safetensors", {stem + "lora_A.weight": (rank, hidden), stem + "lora_B.weight": (hidden, rank)})
    (folder / "recipe.json").write_text(json.dumps({"base_fingerprint": read_model(base).fingerprint}))
    return folder


class FakeTalk:
    """Answers by kind of request: ``answers[kind](request)`` gives an answer, None, a `StudioError`, or events and one of these."""

    def __init__(self):
        self.asked: list[specs.Spec] = []
        self.stopped: list[int] = []
        self.answers: dict[str, Callable] = {}
        self.hold: set[str] = set()        # kinds that stay unanswered until `release`
        self._held: list[tuple[int, specs.Spec]] = []
        self._words: deque = deque()
        self._numbers = itertools.count(1)

    def ask(self, request: specs.Spec) -> int:
        ticket = next(self._numbers)
        self.asked.append(request)
        if request.kind in self.hold:
            self._held.append((ticket, request))
        else:
            self._answer(ticket, request)
        return ticket

    def release(self) -> None:
        for ticket, request in self._held:
            self._answer(ticket, request)
        self._held.clear()

    def emit(self, index: int, event: events.Event) -> None:
        """Let the ``index``-th held request hear an event now."""
        self._words.append((self._held[index][0], event))

    def _answer(self, ticket: int, request: specs.Spec) -> None:
        said = self.answers.get(request.kind, lambda _: None)(request)
        *before, last = said if isinstance(said, list) else [said]
        for word in before:
            self._words.append((ticket, word))
        self._words.append((ticket, Failed(last) if isinstance(last, StudioError) else Done(last)))

    def stop(self, ticket: int) -> None:
        self.stopped.append(ticket)

    def drain(self) -> list:
        found = list(self._words)
        self._words.clear()
        return found

    def close(self) -> None:
        """Nothing to close."""

    def of(self, kind: type) -> list:
        return [request for request in self.asked if isinstance(request, kind)]


def words_of(widget) -> str:
    """All words that can be read on a widget now."""
    from PySide6.QtWidgets import QApplication, QLabel

    QApplication.processEvents()
    return " ".join(label.text() for label in widget.findChildren(QLabel) if label.isVisibleTo(widget))


def data_report(request: specs.DescribeData) -> specs.DataReport:
    chats = [[{"role": "user", "content": f"What does item {i} cost?"}, {"role": "assistant", "content": f"Item {i} costs {i} euros."}]
             for i in range(1, 9)]
    return specs.DataReport(path=request.data, sentence="159 question and answer pairs, from the columns question and answer.", rows=159,
                            held_out=16,
                            shape="question/answer", columns=["question", "answer"],
                            choices=dict.fromkeys(["question", "answer"], ["question", "answer", "context", "ignore"]),
                            roles=request.roles or {"question": "question", "answer": "answer"}, examples=chats,
                            notes=["3 examples stand in the file more than once."])


def rows_page(request: specs.ShowRows) -> specs.RowsPage:
    numbers = range(request.start, request.start + request.count)
    return specs.RowsPage(start=request.start, held=[n % 10 == 9 for n in numbers],
                          examples=[[{"role": "user", "content": f"What does item {n + 1} cost?"},
                                     {"role": "assistant", "content": f"Item {n + 1} costs {n + 1} euros."}] for n in numbers])


def lint_report(request: specs.LintData) -> specs.LintReport:
    """Two problems, of which each is gone when its fix was used."""
    mask, one = specs.Edit("mask", [], ["mail"]), specs.Edit("keep-one")
    problems = [specs.Problem(rule="duplicate", count=3, rows=[4, 5, 9], evidence=["", "", ""], fixes=[specs.Fix("keep-one", [one])]),
                specs.Problem(rule="personal-mail", count=1, rows=[7], evidence=["Write to [e-mail]"], fixes=[specs.Fix("mask", [mask])])]
    return specs.LintReport(rows=159, problems=[p for p in problems if p.fixes[0].edits[0] not in request.edits])


def rendered(request: specs.RenderRow) -> specs.RenderedRow:
    return specs.RenderedRow(spans=[["<|im_start|>user\nWhat does item 1 cost?<|im_end|>\n<|im_start|>assistant\n", False],
                                    ["Item 1 costs 1 euros.<|im_end|>", True], ["\n", False]], tokens=31, learned_tokens=9,
                                    limit=request.max_length)


def plan_report(request: specs.EstimatePlan) -> specs.PlanReport:
    steps = round(request.plan.passes * 143 / request.plan.rows_per_step)
    return specs.PlanReport(rows=143, steps=steps, tokens=100 * steps, seconds=2.4 * steps, seconds_error=0.4 * steps, memory_mb=1900,
                            free_memory_mb=8000,
                            disk_mb=20, trainable=500_000, sentence="")


def methods(_: specs.DescribeMethods) -> specs.MethodsReport:
    fields = [{"name": "r", "label": "Capacity", "help": "How much it can hold.", "term": "r", "unit": "", "low": 1, "high": 1024,
               "choices": None,
               "advanced": False, "type": "int", "default": 8, "required": False},
              {"name": "lora_alpha", "label": "Loudness", "help": "Scales it.", "term": "lora_alpha", "unit": "", "low": 0, "high": 4096,
               "choices": None,
               "advanced": True, "type": "float", "default": 8, "required": False},
              {"name": "target_modules", "label": "Layers", "help": "Which layers learn.", "term": "target_modules", "unit": "",
               "low": None, "high": None,
               "choices": None, "advanced": True, "type": "list", "default": None, "required": False}]
    return specs.MethodsReport(methods=[{"peft_type": "LORA", "title": "LoRA", "help": "Small files.", "fields": fields}])


def speak(request: specs.Say) -> list:
    column = request.columns[0]
    text = "A rye loaf costs $5.40, friend." if column == "stack" else "A rye loaf costs about three dollars, friend."
    return [*(events.Token(column, piece) for piece in text.split(" ")[:3]),
            events.Answered(column, text, 9, 0.8, "abcdef0123456789", [] if column == "base" else [["Shop answers", "fedcba98", 1.0]]),
            None]


def scripted_train(steps: int = 40):
    """A training whose error falls and rises again, told with real events; the adapter folder appears at the end."""

    def work(spec: specs.TrainSpec, run) -> Iterator[events.Event]:
        yield events.Progress("Loading the model")
        for step in range(steps + 1):
            if step % 10 == 0:
                yield events.Evaluated(step, 3.2 - 0.05 * step + 0.0012 * step * step, 16, best=step == 20)
                for prompt in spec.prompts:
                    yield events.Sample(step, prompt, f"Answer at step {step}.")
                yield events.Saved(step, "checkpoint")
            if step:
                yield events.Step(step, steps, 3.3 - 0.04 * step, 2e-4, 400, 812.0, 1930.0, 2.0 * (steps - step), 3 * step / steps)
            if run.asked("pause") or run.asked("cancel"):
                yield events.Stopped("pause" if run.asked("pause") else "cancel", resumable=True, step=step)
                return
        Path(spec.out).mkdir(parents=True)
        result = {"steps": steps, "error_before": 3.2, "error_after": 2.68, "best_step": 20, "rows": 143, "held_out": 16, "seconds": 95.0,
                  "fingerprint": "f" * 64}
        (Path(spec.out) / "recipe.json").write_text(json.dumps({"spec": spec.to_dict(), "result": result}))
        yield events.Finished({"adapter": spec.out, **result})
    return work


def scripted_review(spec: specs.ReviewSpec, run) -> Iterator[events.Event]:
    """A comparison of eight rows, the worst first, most of them better."""
    yield events.Progress("Testing without the skill", 0, 32, "rows")
    for row in range(8):
        loss = row < 2
        yield events.Reviewed(row, f"What does item {row} cost?", f"Item {row} costs {row} euros.", 3.0, 3.4 if loss else 1.2 + row / 10,
                              "loss" if loss else "win", f"About {row + 1} dollars, I think.", f"Item {row} costs {row} euros.")
    result = {"adapter": spec.adapter, "rows": 8, "before": 3.0, "after": 2.1, "wins": 6, "same": 0, "losses": 2, "gain": 0.3,
              "interval": [0.12, 0.44], "strengths": {"0.5": 2.6, "0.75": 1.9, "1": 2.1}, "best_strength": 0.75,
              "general": {"rows": 24, "before": 2.31, "after": 2.36, "forgotten": False}, "seconds": 9.0}
    yield events.Finished(result)


def scripted_search(spec: specs.FindSpeedSpec, run) -> Iterator[events.Event]:
    """Twelve speeds to a power of ten; the error is lowest at 0.004 and explodes after it."""
    curve = []
    for k in range(54):
        if run.asked("cancel"):
            yield events.Stopped("cancel")
            return
        rate = 1e-6 * 10 ** (k / 12)
        curve.append([rate, 1 - 0.4 * 2.718 ** (-((k - 43) / 9) ** 2) + max(0, k - 46) ** 2 / 40])
        yield events.Tried(k + 1, 73, *curve[-1])
    yield events.Finished({"learning_rate": 0.00038, "lowest": curve[43][0], "steepest": curve[37][0], "curve": curve, "seconds": 40.0})


def scripted_export(spec: specs.ExportSpec, run) -> Iterator[events.Event]:
    for done in range(3):
        yield events.Progress("Baking in", done, 3, "tensors", 3.0 - done)
    yield events.Checked("reloads", True, "The folder opens again in plain transformers, without the studio.")
    yield events.Checked("equals-live-stack", True, "Over 3 questions, no token's score is further than 1e-05 from the live stack's.", 1e-5, 1e-3)
    out = Path(spec.out)
    out.mkdir(parents=True)
    samples = [{"question": q, "stack": "Bread.", "export": "We bake bread and rolls."} for q in spec.prompts]
    (out / "receipt.json").write_text(json.dumps({"verified": True, "samples": samples}))
    yield events.Finished({"path": str(out), "receipt": str(out / "receipt.json"), "verified": True, "bytes": 269_000_000, "seconds": 12.0})


class World:
    """Everything a panel may want, over one home."""

    def __init__(self, root: Path):
        self.home = Home(root).prepare()
        self.settings = Settings(self.home.settings)
        self.catalogue = Catalogue(self.home)
        self.document = StackDocument()
        self.undo = UndoStack(self.document)
        self.talk = FakeTalk()
        self.talk.answers = {"describe-data": data_report, "lint-data": lint_report, "render-row": rendered,
                             "show-rows": rows_page, "estimate-plan": plan_report,
                             "describe-methods": methods, "say": speak}
        self.work: dict[str, Callable] = {"train": scripted_train(), "review": scripted_review, "export": scripted_export,
                                           "find-speed": scripted_search}
        self.queue = JobQueue(self.home, JobStore(self.home.database), InlineRunner(lambda spec, run: self.work[spec.kind](spec, run)))
        self.queue_bridge, self.talk_bridge = QueueBridge(self.queue), TalkBridge(self.talk)

    def start(self) -> None:
        """Let the queue work; without it, jobs wait."""
        self.queue.start()

    def settle(self) -> None:
        """Deliver all news that lie ready."""
        self.queue_bridge.tick()
        self.talk_bridge.tick()
        while self.talk_bridge._waiting:   # a tick ends after a few milliseconds
            self.talk_bridge.tick()

    def run_all(self, seconds: float = 10.0) -> None:
        """Work until nothing waits or runs any more, and deliver the news."""
        until = time.monotonic() + seconds
        while any(job.active for job in self.queue.jobs()) or self.queue._running is not None:
            assert time.monotonic() < until, [job.state for job in self.queue.jobs()]
            self.settle()
        while self.queue._news or self.queue_bridge._waiting:
            self.settle()

    def close(self) -> None:
        for bridge in (self.queue_bridge, self.talk_bridge):
            bridge.stop_ticking()
            bridge.deleteLater()
        if self.queue._thread is not None:
            self.queue.close()
        else:
            self.queue._store.close()
