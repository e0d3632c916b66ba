"""The end of a training: the adapter in its place, with the recipe that says how it was made. And: may it be placed there at all?"""

from __future__ import annotations

import hashlib
import json
import platform
import time
import uuid
from pathlib import Path

import torch
import transformers

import engine
from engine.checkpoint.save import save_adapter
from engine.errors import InvalidSpec
from engine.specs import TrainSpec
from engine.store.atomic import replacing_folder, write_json, write_text
from engine.store.runs import RunFolder
from engine.train.precision import Precision


def earlier_result(spec: TrainSpec, run: RunFolder) -> dict | None:
    """The result if this very run has placed its adapter already. Raises `InvalidSpec` if something else stands in its place."""
    out = Path(spec.out)
    if not out.exists():
        return None
    try:
        recipe = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        recipe = {}
    if isinstance(recipe, dict) and recipe.get("run") == run_token(run):
        return {"adapter": str(out), **recipe["result"]}
    sentence = f"There is something named “{out.name}” in the library already."
    raise InvalidSpec(sentence, "It would be overwritten.", "Choose another name, or remove it first.", fields={"out": sentence})


def run_token(run: RunFolder) -> str:
    """A name for this run that no other run has and that survives moving the folder."""
    path = run.path / "token"
    if not path.exists():
        write_text(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8").strip()


def versions() -> dict[str, str]:
    """What the arithmetic depends on."""
    return {"engine": engine.__version__, "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}


def place(spec: TrainSpec, run: RunFolder, model, material, result: dict, rate: float, evaluations: list, turns: list) -> dict:
    """Write adapter and recipe into ``spec.out``, both or nothing. Returns the result with ``adapter`` and ``fingerprint``.

    Raises `InvalidSpec` if something has come there since the training began.
    """
    out = Path(spec.out)
    earlier_result(spec, run)
    precision = Precision(**json.loads((run.path / "precision.json").read_text(encoding="utf-8")))
    with replacing_folder(out) as new:
        save_adapter(model, "default", new)
        result = {**result, "fingerprint": hashlib.sha256((new / "adapter_model.safetensors").read_bytes()).hexdigest()}
        write_json(new / "recipe.json", {
            "run": run_token(run), "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "base": Path(spec.base).name, "base_fingerprint": material.base_fingerprint,
            "data": {"file": Path(spec.data).name, "sha256": material.data_hash, "rows": result["rows"], "held_out": result["held_out"]},
            "template": material.tokenizer.chat_template, "system": spec.system, "seed": spec.seed, "learning_rate": rate,
            "course": turns,               # what was decided on the way: `engine.train.course`
            "precision": precision.to_dict(), "scores": {"before": result["error_before"], "after": result["error_after"],
                                                         "curve": evaluations},
            "versions": versions(),
            "result": result, "spec": spec.to_dict()})
    return {"adapter": str(out), **result}
