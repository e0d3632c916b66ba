"""From a stack to a finished model folder: listen to the live stack, bake it in, open the result again, prove it, write the receipt.

Nothing appears under the chosen name before all of this is done. What fails its checks is kept aside under another name.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.bases.load import load_model, load_tokenizer
from engine.data.render import PLAIN_TEMPLATE
from engine.errors import Cancelled, StudioError, VerificationFailed
from engine.events import Event, Finished, Note, Progress, Stopped
from engine.export.probe import PROMPTS, QUESTIONS, Probe, listen
from engine.export.receipt import RECEIPT, write_receipt
from engine.export.verify import Verification, comparing_format, refuse_silence
from engine.merge.plan import MergePlan, plan_merge
from engine.merge.stream import check_room, merge_into
from engine.mix.stack import StackOnBase
from engine.specs.jobs import ExportSpec
from engine.store.atomic import recover, replacing_folder
from engine.store.library import ModelInfo, folder_bytes, read_model
from engine.store.runs import RunFolder

LISTENING = "Listening to the live stack"


def export(spec: ExportSpec, run: RunFolder) -> Iterator[Event]:
    """The export job. ``Finished.result``: path, receipt (path), verified, bytes, seconds.

    Raises:
        InvalidSpec, BadModel, BadAdapter, WrongBase, DiskFull, StudioError: before anything is written.
        VerificationFailed: the folder was kept as ``<name>-unverified`` (fact ``path``), the chosen name stays free.
    """
    spec.check()
    began, out, base = time.monotonic(), Path(spec.out).expanduser().absolute(), read_model(spec.base)
    if _done_before(out, run):
        yield _finished(out, began)
        return
    check_place(out, base, [Path(entry.adapter) for entry in spec.stack])
    recover(out)                           # of an attempt that was killed
    try:
        yield from _carry_out(spec, run, out, base)
    except Cancelled:
        reason = "pause" if run.asked("pause") and not run.asked("cancel") else "cancel"
        yield Stopped(reason, resumable=reason == "pause")
        return
    yield _finished(out, began)


def _carry_out(spec: ExportSpec, run: RunFolder, out: Path, base: ModelInfo) -> Iterator[Event]:
    def asked_to_stop() -> bool:
        return run.asked("cancel") or run.asked("pause")

    entries = [entry for entry in spec.stack if entry.enabled and entry.strength]
    yield Progress("Reading the adapters")
    plan = plan_merge(base, entries, spec.dtype)
    check_room(out, plan)
    tokenizer, probes, compare = load_tokenizer(base.path), [], "float32"
    if spec.verify:
        compare = comparing_format(base)
        if compare != "float32":
            yield Note("The memory is too small to compare in full precision, so the checks are coarser.", level="warning")
        yield from _listen(plan, tokenizer, [*spec.prompts, *QUESTIONS], compare, asked_to_stop, probes)
    with replacing_folder(out) as folder:
        yield from merge_into(folder, plan, spec.dtype, asked_to_stop)
        if not base.has_chat_template:     # it was taught and heard with the plain one: other programs are to speak with it alike
            (folder / "chat_template.jinja").write_text(PLAIN_TEMPLATE, encoding="utf-8")
        verification = Verification(folder, plan, probes, tokenizer, compare, asked_to_stop)
        if spec.verify:
            yield from verification
        else:
            yield Note("The finished model was not verified, as you asked.", level="warning")
        samples = [{"question": p.question, "stack": p.live_answer, "export": verification.answers.get(p.question, "")} for p in probes]
        write_receipt(folder, plan, entries, spec.dtype, run.path.name, verification.checks, samples, verification.passed)
        if spec.verify and not verification.passed:
            _put_aside(folder, out, verification)


def _listen(plan: MergePlan, tokenizer, questions: list[str], compare: str, stopped: Callable[[], bool],
            probes: list[Probe]) -> Iterator[Progress]:
    """Load the live stack as it runs in the playground, ask it, fill ``probes``, and give the memory back."""
    questions = list(dict.fromkeys(questions))[:PROMPTS]
    yield Progress(LISTENING, 0, len(questions), "questions")
    live = StackOnBase(load_model(plan.base.path, dtype=compare), plan.base)
    live.arrange(plan.stack.entries)
    for probe in listen(live, tokenizer, questions, stopped):
        probes.append(probe)
        yield Progress(LISTENING, len(probes), len(questions), "questions")
    refuse_silence(probes)


def check_place(out: Path, base: ModelInfo, adapters: list[Path]) -> None:
    """Refuse a folder that holds something, or that lies within what is read. Raises `StudioError`."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise StudioError(f"The folder {out.name} is already there and not empty.", do="Choose another name; nothing is ever overwritten.",
                          path=str(out))
    for source in (base.path, *adapters):
        if out.resolve().is_relative_to(source.resolve()):
            raise StudioError(f"The finished model cannot be put into {source.name}.", "It would end up within its own ingredients.",
                              "Choose a folder elsewhere.", path=str(out))


def _put_aside(folder: Path, out: Path, verification: Verification) -> None:
    """Keep a folder that failed under a name that says so, and raise `VerificationFailed`."""
    aside, number = out.with_name(f"{out.name}-unverified"), 2
    while aside.exists():
        aside, number = out.with_name(f"{out.name}-unverified-{number}"), number + 1
    with replacing_folder(aside) as kept:
        for file in list(folder.iterdir()):
            os.replace(file, kept / file.name)
    failed = [check for check in verification.checks if not check.passed]
    raise VerificationFailed(
        "The finished model is not what you heard.", " ".join(check.sentence for check in failed),
        f"Do not use it. It was kept as {aside.name} so that it can be examined.", path=str(aside), checks=[check.name for check in failed])


def _done_before(out: Path, run: RunFolder) -> bool:
    """Whether an earlier attempt of this very job had finished the folder and was killed before it could say so."""
    try:
        return json.loads((out / RECEIPT).read_text(encoding="utf-8")).get("job") == run.path.name
    except (OSError, ValueError, AttributeError):
        return False


def _finished(out: Path, began: float) -> Finished:
    receipt = json.loads((out / RECEIPT).read_text(encoding="utf-8"))
    return Finished({"path": str(out), "receipt": str(out / RECEIPT), "verified": receipt["verified"], "bytes": folder_bytes(out),
                     "seconds": round(time.monotonic() - began, 3)})
