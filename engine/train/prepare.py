"""From a spec to what the loop works on: examples as tokens, a base with a fresh adapter. Shared by training and its estimate."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.bases.load import load_model, load_tokenizer
from engine.data.render import Rendered, prepare_tokenizer, render_all
from engine.data.shapes import Row, load
from engine.data.split import split
from engine.errors import BadData, BadModel, DamagedCheckpoint
from engine.model.peft_model import get_peft_model
from engine.specs import TrainSpec
from engine.store.atomic import write_json
from engine.store.library import read_model
from engine.store.runs import RunFolder
from engine.train import fsdp
from engine.train.batching import Schedule
from engine.train.precision import Precision, choose
from engine.train.presets import ANY_LENGTH, adapter_config, method_settings, unusable
from engine.train.team import Team

_FREE = ("out", "prompts", "checkpoint_seconds", "processes", "split")     # settings that may change without changing what is learned


@dataclass
class Material:
    """Everything read, nothing loaded: the examples as the model sees them, and who is who."""

    tokenizer: object
    learn: list[Rendered]
    lines: list[int]                       # of the rows of ``learn`` in the file
    test: list[Rendered]
    tested: list[Row]                      # the rows of ``test``, as they stand in the file
    notes: list[str]
    sentence: str
    data_hash: str                         # of the rows as they stand in the file
    base_fingerprint: str
    identity: dict                         # what must be the same for a run to go on


def read_material(spec: TrainSpec) -> Material:
    """Read and render the examples. Raises `BadData`, `BadModel`; `InvalidSpec` if the method cannot be taught from them."""
    adapter_config(spec)
    base = read_model(spec.base)
    data = load(spec.data, spec.roles, spec.edits)
    tokenizer = prepare_tokenizer(load_tokenizer(spec.base))
    learn, test = split(data.rows, spec.holdout)     # before rows are left out: the split depends on the rows alone
    context = base.config.get("max_position_embeddings")
    limit = min(spec.max_length, context) if isinstance(context, int) else spec.max_length
    rows, learned, notes = render_all(learn, tokenizer, spec.system, limit)
    try:
        tested = render_all(test, tokenizer, spec.system, limit)
    except (BadData, BadModel) as nothing_left:
        tested = [], [], ["All examples held back for testing had to be left out.", nothing_left.why]
    if not learned:
        raise BadData("There is nothing to learn from.", do="Add examples.")
    tokens = hashlib.sha256(json.dumps([r.ids + r.labels for r in [*learned, *tested[1]]]).encode()).hexdigest()
    settings = {k: v for k, v in spec.to_dict().items() if k not in _FREE and k not in ("base", "data")}
    identity = {"settings": hashlib.sha256(json.dumps([settings, method_settings(spec)], sort_keys=True).encode()).hexdigest(),
                "examples": tokens, "model": base.fingerprint}
    return Material(tokenizer, learned, [row.line for row in rows], tested[1], tested[0], data.notes + notes + tested[2], data.sentence,
                    data.digest, base.fingerprint, identity)


def schedule_of(spec: TrainSpec, material: Material) -> Schedule:
    """The order of the rows, as the plan has it."""
    return Schedule([len(row.ids) for row in material.learn], spec.rows_per_step, spec.passes, spec.seed, spec.max_steps)


def best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_student(spec: TrainSpec, precision: Precision, steps: int = ANY_LENGTH, team: Team | None = None):
    """The base in the run's number format with one fresh, trainable adapter named "default". Seeds torch with the spec's seed.

    ``steps``: of the training, for methods that follow a timetable. ``team``: over which the base is split, if it has to be.
    Raises `BadModel`; `InvalidSpec`, `UnsupportedLayer` if the method and its settings do not fit the model.
    """
    config = adapter_config(spec, steps)
    apart = fsdp.is_wanted(spec, precision)
    model = load_model(spec.base, dtype=precision.dtype, device="cpu" if apart else best_device(), bits=spec.base_bits)
    base = [*model.parameters()]
    torch.manual_seed(spec.seed)
    try:
        model = get_peft_model(model, config)
    except (TypeError, ValueError) as problem:
        raise unusable(problem) from problem
    if apart:
        fsdp.Split(model, base, team or Team(), best_device())
    return model


def settled_precision(spec: TrainSpec, run: RunFolder) -> Precision:
    """The run's number format: measured once and written down, because a resumed run must compute as it began."""
    path: Path = run.path / "precision.json"
    if path.exists():
        try:
            return Precision(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as problem:
            raise DamagedCheckpoint("This training's folder is damaged.", "The number format it computed in cannot be read.",
                                    "Start the training anew.", details=str(problem), path=str(path)) from problem
    precision = choose(spec.precision, best_device())
    write_json(path, precision.to_dict())
    return precision
