"""Checkpoints from which a run goes on bit by bit, and which are believed only when their checksums agree.

A checkpoint is a folder ``step-00000042``: ``adapter.safetensors`` (float32 masters by parameter name), ``optimizer.safetensors``,
``best.safetensors`` (the kept state, if it is another one), ``state.json`` (position, history, random generators) and, written last,
``manifest.json`` with the SHA-256 of every file. No pickle. The folder appears whole or not at all; the two newest are kept.
A folder of weights alone has no manifest and is never taken for a checkpoint.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import safetensors.torch
import torch
from torch import Tensor

from engine.errors import BadData, DamagedCheckpoint
from engine.merge.shards import NAMES, ShardWriter, plan_entries
from engine.store.atomic import recover, replacing_folder
from engine.store.headers import TensorEntry

FORMAT, KEPT = 2, 2
WEIGHTS = ("adapter.safetensors", "optimizer.safetensors", "best.safetensors")


@dataclass
class Checkpoint:
    """All that a run needs to go on. Tensors are on the CPU; ``progress`` and ``identity`` are plain JSON.

    ``identity`` (hashes of spec, data and base) says to which run the checkpoint belongs; ``generators`` has an entry for each process.
    """

    step: int
    adapter: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best: dict[str, Tensor]
    progress: dict
    identity: dict
    generators: list[dict] = field(default_factory=lambda: [generators()])


def generators() -> dict:
    """This process's state of torch's, Python's and numpy's global random generators (and of the graphics cards'), as JSON."""
    kind, words, position, has_gauss, gauss = numpy.random.get_state()
    version, internal, gauss_next = random.getstate()
    cards = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": _pack(torch.get_rng_state()), "cuda": [_pack(card) for card in cards],
            "python": [version, list(internal), gauss_next], "numpy": [kind, words.tolist(), int(position), int(has_gauss), float(gauss)]}


def restore_generators(state: dict) -> None:
    """Put back what `generators` gave."""
    torch.set_rng_state(_unpack(state["torch"]))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_unpack(card) for card in state["cuda"]])
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, words, *rest = state["numpy"]
    numpy.random.set_state((kind, numpy.array(words, dtype=numpy.uint32), *rest))


def _pack(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _unpack(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and drop all but the two newest. Raises `OSError` (full disk …); what was there before is then untouched."""
    target = place(folder, checkpoint.step)
    with replacing_folder(target) as new:
        state = {"format": FORMAT, "step": checkpoint.step, "progress": checkpoint.progress, "identity": checkpoint.identity,
                 "generators": checkpoint.generators}
        sums = {name: _write(new / name, tensors) for name, tensors in zip(WEIGHTS, (checkpoint.adapter, checkpoint.optimizer, checkpoint.best))}
        sums["state.json"] = _write(new / "state.json", json.dumps(state).encode())
        _write(new / "manifest.json", json.dumps({"format": FORMAT, "step": checkpoint.step, "sha256": sums}, indent=1).encode())
    for old in found(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _write(path: Path, content: bytes | Mapping[str, Tensor]) -> str:
    """Write bytes, or tensors one after another as safetensors. Returns the file's SHA-256, which is summed up on the way."""
    if isinstance(content, bytes):
        path.write_bytes(content)
        return hashlib.sha256(content).hexdigest()
    names = sorted(content, key=lambda name: (-content[name].itemsize, name))  # the widest first: so all of them are aligned
    with _Summed(path, plan_entries((name, NAMES[content[name].dtype], content[name].shape) for name in names), {}) as file:
        for name in names:
            file.begin(name)
            file.block(content[name])
    return file.sum.hexdigest()


class _Summed(ShardWriter):
    """Knows the SHA-256 of what it has written."""

    def __init__(self, path: Path, entries: dict[str, TensorEntry], metadata: dict[str, str]):
        self.sum = hashlib.sha256()
        super().__init__(path, entries, metadata)

    def _write(self, data: memoryview | bytes) -> None:
        self.sum.update(data)
        super()._write(data)


def found(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first. Unfinished ones (with a leading dot) are none."""
    return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of this step lies."""
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """How many steps a checkpoint folder's run had done."""
    return int(path.name.removeprefix("step-"))


def sweep(folder: Path) -> None:
    """Clear up after a kill in the middle of a save."""
    for left in sorted(folder.glob(".step-*.*.*")) if folder.is_dir() else []:
        recover(folder / left.name[1:].split(".")[0])


def read(path: Path) -> Checkpoint:
    """Read one checkpoint, every byte checked. Raises `DamagedCheckpoint`."""
    def damaged(why: str, details: str = "") -> DamagedCheckpoint:
        return DamagedCheckpoint(f"The checkpoint {path.name} is damaged.", why, "An older one is used, or the training starts anew.",
                                 details=details, path=str(path))

    try:
        sums = json.loads((path / "manifest.json").read_bytes())["sha256"]

        def content(name: str) -> bytes:
            found = (path / name).read_bytes()
            if hashlib.sha256(found).hexdigest() != sums[name]:
                raise damaged(f"The content of {name} is not what was written.")
            return found

        state = json.loads(content("state.json"))
        if state["format"] != FORMAT:
            raise damaged("It was written by another version.")
        return Checkpoint(state["step"], *(safetensors.torch.load(content(name)) for name in WEIGHTS), state["progress"], state["identity"],
                          state["generators"])
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as problem:
        raise damaged("A part of it is missing or cut off.", f"{type(problem).__name__}: {problem}") from problem


def newest(folder: Path, identity: dict) -> tuple[Checkpoint | None, list[str]]:
    """The newest sound checkpoint and a sentence for each damaged one that was passed over.

    Raises `BadData` when the checkpoint belongs to other examples or another model than the run has now.
    """
    notes = []
    for path in found(folder):
        try:
            checkpoint = read(path)
        except DamagedCheckpoint as damage:
            notes.append(f"{damage.what} {damage.why}")
            continue
        if changed := [name for name, value in identity.items() if checkpoint.identity.get(name) != value]:
            raise BadData(f"This training cannot go on: the {' and the '.join(changed)} changed since it began.",
                          "Going on would mix two different things.", "Put back what it began with, or start a new training.", changed=changed)
        return checkpoint, notes
    return None, notes
