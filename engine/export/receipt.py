"""The receipt of an export: for machines ``receipt.json``, for people ``README.md``. Names, not paths: folders travel."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine import __version__
from engine.events import Checked
from engine.merge.plan import MergePlan
from engine.specs.jobs import StackEntry
from engine.store.atomic import write_json, write_text

RECEIPT, CARD = "receipt.json", "README.md"


def write_receipt(folder: Path, plan: MergePlan, entries: Sequence[StackEntry], dtype: str, job: str, checks: list[Checked],
                  samples: list[dict[str, str]], verified: bool) -> Path:
    """Write both into ``folder``; returns the path of ``receipt.json``. ``samples``: question, base, stack, export (answers)."""
    import torch
    import transformers

    receipt = {
        "kind": "export-receipt", "verified": verified, "job": job, "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "base": {"name": plan.base.name, "fingerprint": plan.base.fingerprint, "model_type": plan.base.model_type,
                 "parameters": plan.base.parameters},
        "adapters": [{"name": placed.info.name, "fingerprint": placed.info.fingerprint, "strength": entry.strength,
                      "kind": placed.info.peft_type, "rank": placed.info.rank} for placed, entry in zip(plan.stack.placed, entries, strict=True)],
        "format": dtype, "changed_tensors": len(plan.touched),
        "files": {str(file.relative_to(folder).as_posix()): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
                  for file in sorted(folder.rglob("*")) if file.is_file()},
        "checks": [_plain(check) for check in checks], "samples": samples,
        "versions": {"adapter-studio": __version__, "python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__}}
    write_text(folder / CARD, _card(receipt))
    write_json(folder / RECEIPT, receipt)
    return folder / RECEIPT


def _sha256(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _plain(check: Checked) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(check).items() if k not in ("seq", "time")}


def _card(receipt: dict) -> str:
    base, adapters = receipt["base"]["name"], receipt["adapters"]
    lines = ["---", f"base_model: {_quoted(base)}", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- merge",
             "- adapter-studio", "---", "", f"# {base} with {', '.join(a['name'] for a in adapters)}", "",
             f"A complete model: {base} with these adapters baked in, in this order.", "",
             "| adapter | kind | strength | fingerprint |", "|---|---|---|---|",
             *(f"| {_cell(a['name'])} | {a['kind']} | {a['strength']:g} | `{a['fingerprint'][:16]}` |" for a in adapters), "",
             f"Fingerprint of the base: `{receipt['base']['fingerprint'][:16]}`. Made on {receipt['made'][:10]} with Adapter Studio "
             f"{receipt['versions']['adapter-studio']}.", ""]
    if receipt["checks"]:
        lines += ["## Verified" if receipt["verified"] else "## NOT verified: do not use this", "", "| check | passed | finding |", "|---|---|---|",
                  *(f"| {c['name']} | {'yes' if c['passed'] else '**no**'} | {_cell(c['sentence'])} |" for c in receipt["checks"]), ""]
    else:
        lines += ["This folder was not verified (as asked).", ""]
    for sample in receipt["samples"]:
        lines += [f"> {_cell(sample['question'])}", "", f"Answer: {_cell(sample['export']) or '(none)'}", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """One line that cannot break out of a table or start a heading."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)        # a JSON string is a YAML string
