"""A checkpoint comes back bit by bit, or is not believed at all."""

import errno
import random

import numpy
import pytest
import safetensors.torch
import torch

from engine.errors import BadData, DamagedCheckpoint
from engine.train import checkpoint as checkpoints
from engine.train.checkpoint import Checkpoint, found, newest, read, restore_generators, save, sweep

IDENTITY = {"settings": "s", "examples": "e", "model": "m"}


def state(step=3):
    torch.manual_seed(step)
    weights = {f"layer.{k}.lora_A.default.weight": torch.randn(4, 5) for k in range(3)}
    return Checkpoint(step, weights, {"x/exp_avg": torch.randn(4, 5), "x/step": torch.tensor(float(step))}, {}, {"errors": [0.1, 1e-300]}, IDENTITY)


def test_everything_comes_back_bit_by_bit(tmp_path):
    written = state()
    back = read(save(tmp_path, written))
    assert (back.step, back.progress, back.identity, back.generators) == (written.step, written.progress, written.identity, written.generators)
    for name in ("adapter", "optimizer", "best"):
        one, other = getattr(written, name), getattr(back, name)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one)


def test_files_are_what_safetensors_itself_writes(tmp_path):
    """Of every number format that an optimizer keeps, in any shape and layout; empty ones too."""
    torch.manual_seed(0)
    kinds = {"float": torch.randn(3, 5), "half": torch.randn(7).bfloat16(), "codes": torch.arange(9, dtype=torch.uint8).view(3, 3),
             "count": torch.tensor(4), "double": torch.randn(2, dtype=torch.float64), "step": torch.tensor(2.0), "none": torch.empty(0, 4),
             "turned": torch.randn(4, 6).T, "yes": torch.tensor([True, False])}
    path = save(tmp_path, Checkpoint(1, {}, kinds, {"a": torch.randn(2)}, {}, IDENTITY))
    back = read(path).optimizer
    assert back.keys() == kinds.keys() and all(torch.equal(back[k], t) and back[k].dtype is t.dtype for k, t in kinds.items())
    for name, tensors in (("adapter", {}), ("optimizer", {k: t.contiguous() for k, t in kinds.items()})):
        assert len((path / f"{name}.safetensors").read_bytes()) == len(safetensors.torch.save(tensors))
    assert safetensors.torch.load_file(path / "optimizer.safetensors").keys() == kinds.keys()
    alike = {k: t for k, t in kinds.items() if k in ("float", "step", "none")}
    again = save(tmp_path, Checkpoint(2, alike, {}, {}, {}, IDENTITY))
    assert (again / "adapter.safetensors").read_bytes() == safetensors.torch.save(alike)


def test_random_generators_go_on_where_they_were(tmp_path):
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    random.gauss(0, 1), numpy.random.normal(), torch.randn(3)
    path = save(tmp_path, state())
    expected = random.gauss(0, 1), numpy.random.normal(), torch.randn(3).tolist()
    random.seed(2), numpy.random.seed(2), torch.manual_seed(2)
    restore_generators(read(path).generators[0])
    assert (random.gauss(0, 1), numpy.random.normal(), torch.randn(3).tolist()) == expected


def test_two_are_kept_and_the_newest_counts(tmp_path):
    for step in (1, 2, 10, 9):
        save(tmp_path, state(step))
    assert [p.name for p in found(tmp_path)] == ["step-00000010", "step-00000009"]
    assert newest(tmp_path, IDENTITY)[0].step == 10


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.safetensors", "best.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_one_is_passed_over_and_said(tmp_path, name, harm):
    save(tmp_path, state(1))
    file = save(tmp_path, state(2)) / name
    content = bytearray(file.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 4
    file.unlink() if harm == "remove" else file.write_bytes(content[:-5] if harm == "cut" else content)
    if name == "manifest.json" and harm == "flip":
        file.write_bytes(b"{" + content)
    with pytest.raises(DamagedCheckpoint):
        read(file.parent)
    checkpoint, notes = newest(tmp_path, IDENTITY)
    assert checkpoint.step == 1 and len(notes) == 1 and "step-00000002" in notes[0]


def test_a_kill_while_one_takes_another_s_place_loses_none(tmp_path):
    """A step that is done once more is saved once more: the folder of before has been moved away, the new one is not there yet."""
    where = save(tmp_path, state())
    where.rename(tmp_path / f".{where.name}.01234567.old")
    (tmp_path / f".{where.name}.89abcdef.part").mkdir()
    sweep(tmp_path)
    assert newest(tmp_path, IDENTITY)[0].step == 3 and list(tmp_path.iterdir()) == [where]


def test_weights_alone_are_no_checkpoint(tmp_path):
    path = save(tmp_path, state())
    for rest in ("manifest.json", "optimizer.safetensors", "state.json"):
        (path / rest).unlink()
    checkpoint, notes = newest(tmp_path, IDENTITY)
    assert checkpoint is None and notes


def test_another_run_s_checkpoint_is_refused_with_what_changed(tmp_path):
    save(tmp_path, state())
    with pytest.raises(BadData, match="the examples changed"):
        newest(tmp_path, {**IDENTITY, "examples": "other"})


@pytest.mark.parametrize("writes", range(5))
def test_a_full_disk_leaves_the_one_before(tmp_path, monkeypatch, writes):
    save(tmp_path, state(1))
    write, count = checkpoints._write, iter(range(9))

    def full(path, content):
        if next(count) == writes:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(checkpoints, "_write", full)
    with pytest.raises(OSError):
        save(tmp_path, state(2))
    assert newest(tmp_path, IDENTITY) [0].step == 1 and [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
