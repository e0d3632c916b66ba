"""Adapter folders that are broken or mean harm: one sentence each, and nothing is changed, neither on disk nor in the model."""

import hashlib
import json
import os
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.bases.load import load_model
from engine.errors import BadAdapter, StudioError
from engine.export.export import export
from engine.mix.stack import StackOnBase
from engine.specs import ExportSpec, StackEntry
from engine.store.headers import read_header
from engine.store.library import read_adapter, read_model, scan
from engine.store.runs import RunFolder
from tests.support.adapters import make_adapter
from tests.support.tiny import save_base

IDS = torch.tensor([[5, 9, 40]])
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Bomb:
    """Were it ever unpickled, the test would know."""

    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def header(folder, change):
    """Rewrite the header of the weights file: ``change`` gets the table and may return raw bytes instead."""
    data = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8:8 + length])
    raw = change(table)
    raw = raw if isinstance(raw, bytes) else json.dumps(table).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length:])


def first(table, **changes):
    next(entry for name, entry in table.items() if name != "__metadata__").update(changes)


def config(folder, **changes):
    (folder / CONFIG).write_text(json.dumps({**json.loads((folder / CONFIG).read_text()), **changes}))


def tensors(folder, change):
    found = load_file(folder / WEIGHTS)
    save_file(change(found), folder / WEIGHTS)


def only_pickle(folder):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))


HARMS = {
    "empty file": lambda f: (f / WEIGHTS).write_bytes(b""),
    "cut off": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-50]),
    "cut off in the header": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:40]),
    "a pickle called safetensors": lambda f: (f / WEIGHTS).write_bytes(pickle.dumps(Bomb())),
    "a zip called safetensors": lambda f: torch.save({"a": torch.ones(2)}, f / WEIGHTS),
    "only a pickle": only_pickle,
    "no weights": lambda f: (f / WEIGHTS).unlink(),
    "weights are a folder": lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()),
    "absurd header length": lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 2**63) + b"{}"),
    "header longer than the file": lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 10**6) + b"{}"),
    "header is no JSON": lambda f: header(f, lambda t: b"\xff\xfe not json"),
    "header is a list": lambda f: header(f, lambda t: b"[1, 2]"),
    "header nested without end": lambda f: header(f, lambda t: b"[" * 100_000),
    "header holds a number without end": lambda f: header(f, lambda t: b'{"a": ' + b"9" * 5000 + b"}"),
    "notes are a number": lambda f: header(f, lambda t: t.update(__metadata__=5)),
    "entry is a number": lambda f: header(f, lambda t: t.update(more=7)),
    "unknown format": lambda f: header(f, lambda t: first(t, dtype="F1024")),
    "format is a list": lambda f: header(f, lambda t: first(t, dtype=["F32"])),
    "overlapping": lambda f: header(f, lambda t: first(t, data_offsets=list(t.values())[-1]["data_offsets"], shape=list(t.values())[-1]["shape"])),
    "negative offsets": lambda f: header(f, lambda t: first(t, data_offsets=[-8, 0])),
    "offsets behind the end": lambda f: header(f, lambda t: first(t, data_offsets=[10**12, 10**12 + 768])),
    "negative shape": lambda f: header(f, lambda t: first(t, shape=[-4, -48])),
    "shape that overflows": lambda f: header(f, lambda t: first(t, shape=[2**40, 2**40])),
    "shape contradicts offsets": lambda f: header(f, lambda t: first(t, shape=[3, 3])),
    "wrong shapes": lambda f: tensors(f, lambda found: {k: torch.zeros(3, 5) for k in found}),
    "other rank than it says": lambda f: config(f, r=9),
    "names that match nothing": lambda f: tensors(f, lambda found: {f"elsewhere.{i}.lora_A.weight": t for i, t in enumerate(found.values())}),
    "half of its tensors": lambda f: tensors(f, lambda found: dict(list(found.items())[::2])),
    "more than belongs to it": lambda f: tensors(f, lambda found: {**found, "base_model.model.model.embed_tokens.weight": torch.ones(2, 2)}),
    "not numbers": lambda f: tensors(f, lambda found: {k: t * float("nan") for k, t in found.items()}),
    "infinite": lambda f: tensors(f, lambda found: {k: t / 0 for k, t in found.items()}),
    "whole numbers": lambda f: tensors(f, lambda found: {k: t.to(torch.int64) for k, t in found.items()}),
    "config is no JSON": lambda f: (f / CONFIG).write_text("{r: 4,,}"),
    "config is binary": lambda f: (f / CONFIG).write_bytes(b"\x80\x04\x95\xff\xfe"),
    "config is a list": lambda f: (f / CONFIG).write_text("[]"),
    "config is missing": lambda f: (f / CONFIG).unlink(),
    "config is gigantic": lambda f: (f / CONFIG).write_text('{"a": "' + "x" * 11_000_000 + '"}'),
    "config nested without end": lambda f: (f / CONFIG).write_text('{"a":' * 50_000),
    "config holds a number without end": lambda f: (f / CONFIG).write_text('{"r": ' + "9" * 5000 + "}"),
    "no method": lambda f: (f / CONFIG).write_text("{}"),
    "unknown method": lambda f: config(f, peft_type="MAGIC"),
    "method is a list": lambda f: config(f, peft_type=["LORA"]),
    "method is a path": lambda f: config(f, peft_type="../../etc/passwd"),
    "rank is text": lambda f: config(f, r="four"),
    "rank is negative": lambda f: config(f, r=-4),
    "rank is gigantic": lambda f: config(f, r=10**9),
    "rank is a list": lambda f: config(f, r=[4]),
    "loudness is text": lambda f: config(f, lora_alpha="loud"),
    "loudness is not a number": lambda f: (f / CONFIG).write_text((f / CONFIG).read_text().replace('"lora_alpha": 8', '"lora_alpha": NaN')),
    "targets are a number": lambda f: config(f, target_modules=5),
    "targets are numbers": lambda f: config(f, target_modules=[1, 2]),
    "targets hold a broken expression": lambda f: config(f, target_modules="((("),
    "targets match nothing": lambda f: config(f, target_modules=["nowhere"]),
    "rank pattern is a broken expression": lambda f: config(f, rank_pattern={"(((": 4}),
    "rank pattern is a list": lambda f: config(f, rank_pattern=[1]),
    "features not known here": lambda f: config(f, use_qalora=True),
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    root = tmp_path_factory.mktemp("shelf")
    base = save_base(root / "base")
    stack = StackOnBase(load_model(base), read_model(base))
    return base, stack, make_adapter(root / "good", base, 1), (make_adapter(root / "pattern", base, 2) / WEIGHTS).read_bytes()


@pytest.fixture
def bad(shelf, tmp_path, monkeypatch):
    """A folder that is still sound; the tests harm it."""
    import shutil

    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    folder = tmp_path / "library" / "bad"
    shutil.copytree(shelf[2], folder)
    (folder / WEIGHTS).write_bytes(shelf[3])
    return folder


def snapshot(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in folder.rglob("*")}


def one_sentence(error):
    assert isinstance(error, StudioError) and error.what.endswith(".") and error.do, repr(error)
    assert len(error.what) < 200 and len(error.why) < 500 and "Traceback" not in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmful_adapter_gets_a_sentence_and_changes_nothing(shelf, bad, tmp_path, harm):
    base, stack, good, _ = shelf
    HARMS[harm](bad)
    stack.arrange([StackEntry(str(good), 0.5)])
    modules, files = [name for name, _ in stack.model.named_parameters()], snapshot(tmp_path)
    with torch.no_grad():
        before = stack.model(input_ids=IDS).logits
    with pytest.raises(BadAdapter) as caught:
        stack.arrange([StackEntry(str(good), 0.5), StackEntry(str(bad))])
    one_sentence(caught.value)
    with torch.no_grad():
        assert torch.equal(stack.model(input_ids=IDS).logits, before)
    assert [name for name, _ in stack.model.named_parameters()] == modules
    assert stack.stamp() == [["good", read_adapter(good).fingerprint, 0.5]]
    assert snapshot(tmp_path) == files and not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("harm", ["cut off", "not numbers", "only a pickle", "wrong shapes", "config is no JSON"])
def test_a_harmful_adapter_is_never_exported(shelf, bad, tmp_path, harm):
    base, _, good, _ = shelf
    HARMS[harm](bad)
    spec = ExportSpec(str(base), str(tmp_path / "out"), [StackEntry(str(good)), StackEntry(str(bad))])
    run, files = RunFolder.create(tmp_path / "run", spec), snapshot(tmp_path)
    with pytest.raises(BadAdapter) as caught:
        list(export(spec, run))
    one_sentence(caught.value)
    assert snapshot(tmp_path) == files


def test_a_library_with_a_harmful_adapter_shows_all_others(shelf, bad):
    import shutil

    shutil.copytree(shelf[2], bad.parent / "sound")
    HARMS["cut off"](bad)
    infos, errors = scan(bad.parent, read_adapter)
    assert [info.name for info in infos] == ["sound"] and len(errors) == 1


def test_a_library_of_which_something_goes_while_it_is_read_shows_all_others(shelf, bad, monkeypatch):
    import shutil

    shutil.copytree(shelf[2], bad.parent / "sound")

    def and_gone(path, error):
        found = read_header(path, error)
        if path.parent == bad:
            shutil.rmtree(bad)
        return found

    monkeypatch.setattr("engine.store.library.read_header", and_gone)
    infos, errors = scan(bad.parent, read_adapter)
    assert [info.name for info in infos] == ["sound"]
    one_sentence(errors[0])


@pytest.mark.parametrize("name", ["keys", "train", "a.b.c", "-", "..x", "Ünï cøde ✨", "con", "base_layer", "weight", "x" * 200, "lora_A"])
def test_no_folder_name_can_harm_the_model(shelf, tmp_path, name):
    """Names of adapters become names of modules; whatever the folder is called, the adapter must come in and out whole."""
    import shutil

    base, stack, good, _ = shelf
    shutil.copytree(good, tmp_path / name)
    stack.arrange([StackEntry(str(good))])
    with torch.no_grad():
        before = stack.model(input_ids=IDS).logits
    stack.arrange([StackEntry(str(tmp_path / name))])
    with torch.no_grad():
        assert torch.equal(stack.model(input_ids=IDS).logits, before)
    assert stack.stamp()[0][1] == read_adapter(good).fingerprint


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf")])
def test_a_strength_that_is_no_number_is_refused(shelf, strength):
    _, stack, good, _ = shelf
    stack.arrange([StackEntry(str(good), 0.5)])
    with pytest.raises(StudioError):
        stack.arrange([StackEntry(str(good), strength)])
    assert stack.stamp()[0][2] == 0.5
