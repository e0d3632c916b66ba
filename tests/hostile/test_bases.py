"""Model folders that are broken or mean harm: one sentence each, nothing is run, nothing is written."""

import hashlib
import json
import os
import pickle
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import StudioError, explain
from engine.export.export import export
from engine.generate.session import ChatSession
from engine.specs import ExportSpec, OpenChat, StackEntry
from engine.store.library import read_adapter
from engine.store.runs import RunFolder
from tests.support.adapters import make_adapter
from tests.support.tiny import save_base

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def config(folder, **changes):
    (folder / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), **changes}))


def index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def tensors(folder, change):
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


def own_code(folder):
    (folder / "modeling_evil.py").write_text("import os\nos.mkdir(os.environ['BOMB'])\nclass Evil: pass\n")
    places = {name: "modeling_evil.Evil" for name in ("AutoModelForCausalLM", "AutoConfig")}
    config(folder, model_type="evil", architectures=["Evil"], auto_map=places)


def only_pickle(folder):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


HARMS = {
    "empty weights": lambda f: (f / WEIGHTS).write_bytes(b""),
    "cut off": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1000]),
    "absurd header": lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + b"{}"),
    "a pickle called safetensors": lambda f: (f / WEIGHTS).write_bytes(pickle.dumps(Bomb())),
    "only a pickle": only_pickle,
    "no weights": lambda f: (f / WEIGHTS).unlink(),
    "no config": lambda f: (f / "config.json").unlink(),
    "config is no JSON": lambda f: (f / "config.json").write_text("{,"),
    "config holds a number without end": lambda f: (f / "config.json").write_text('{"hidden_size": ' + "9" * 5000 + "}"),
    "config is a list": lambda f: (f / "config.json").write_text("[]"),
    "config is gigantic": lambda f: (f / "config.json").write_text(" " * 11_000_000 + "{}"),
    "unknown kind": lambda f: config(f, model_type="perpetuum"),
    "kind is a list": lambda f: config(f, model_type=["llama"]),
    "sizes that contradict": lambda f: config(f, hidden_size=64),
    "sizes that are text": lambda f: config(f, hidden_size="many"),
    "negative sizes": lambda f: config(f, num_hidden_layers=-1),
    "more layers than weights": lambda f: config(f, num_hidden_layers=5),
    "own program code": own_code,
    "is an adapter": lambda f: (f / "adapter_config.json").write_text("{}"),
    "a tensor is missing": lambda f: tensors(f, lambda t: {k: v for k, v in t.items() if "norm" not in k}),
    "index points outside": lambda f: index(f, {"model.norm.weight": "../../../etc/passwd"}),
    "index points to the root": lambda f: index(f, {"model.norm.weight": "/etc/passwd"}),
    "index names numbers": lambda f: index(f, {"model.norm.weight": 5}),
    "index map is a list": lambda f: index(f, [1, 2]),
    "index names a file that is missing": lambda f: index(f, {"model.norm.weight": "model-00001-of-00001.safetensors"}),
    "index is no JSON": lambda f: (f / INDEX).write_text("{"),
    "no tokenizer": lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
    "tokenizer is no JSON": lambda f: (f / "tokenizer.json").write_text("{,"),
    "tokenizer settings are no JSON": lambda f: (f / "tokenizer_config.json").write_text("{,"),
    "a template that runs for ever": lambda f: (f / "chat_template.jinja").write_text("{% for i in range(10**12) %}{% endfor %}"),
    "a template that reaches out": lambda f: (f / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a template that is broken": lambda f: (f / "chat_template.jinja").write_text("{% for %}"),
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    root = tmp_path_factory.mktemp("shelf")
    base = save_base(root / "base")
    return base, make_adapter(root / "style", base, 1, recipe=False), make_adapter(root / "named", base, 1)


@pytest.fixture
def bad(shelf, tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    return shutil.copytree(shelf[0], tmp_path / "models" / "bad")


def snapshot(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in folder.rglob("*")}


def one_sentence(error):
    assert isinstance(error, StudioError) and error.what.endswith(".") and error.do, repr(error)
    assert len(error.what) < 300 and len(error.why) < 500 and "Traceback" not in str(error)


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmful_model_is_never_exported(shelf, bad, tmp_path, harm):
    HARMS[harm](bad)
    spec = ExportSpec(str(bad), str(tmp_path / "exports" / "out"), [StackEntry(str(shelf[1]))])
    run, files = RunFolder.create(tmp_path / "run", spec), snapshot(tmp_path)
    with pytest.raises(StudioError) as caught:
        list(export(spec, run))
    one_sentence(caught.value)
    assert type(caught.value) is not StudioError                               # a cause is named; it is not just “unexpected”
    exports = tmp_path / "exports"
    assert not exports.exists() or [p.name for p in exports.iterdir() if not p.name.endswith("-unverified")] == []
    assert {k: v for k, v in snapshot(tmp_path).items() if not k.startswith("exports")} == files and not (tmp_path / "exploded").exists()


def test_a_harmful_model_leaves_the_open_chat_alone(shelf, bad):
    session = ChatSession()
    session.open(OpenChat(str(shelf[0]), [StackEntry(str(shelf[2]), 0.5)]))
    HARMS["cut off"](bad)
    with pytest.raises(StudioError) as caught:
        session.open(OpenChat(str(bad)))
    one_sentence(caught.value)
    assert session._stack.stamp() == [["named", read_adapter(shelf[2]).fingerprint, 0.5]]


def test_a_model_of_broken_numbers_is_not_exported_as_if_it_were_sound(shelf, bad, tmp_path):
    tensors(bad, lambda found: {k: v * float("nan") if "norm" in k else v for k, v in found.items()})
    spec = ExportSpec(str(bad), str(tmp_path / "exports" / "out"), [StackEntry(str(shelf[1]))])
    with pytest.raises(Exception) as caught:
        list(export(spec, RunFolder.create(tmp_path / "run", spec)))
    one_sentence(explain(caught.value))
    assert not (tmp_path / "exports" / "out").exists()


def test_weights_that_are_links_are_read_as_files_and_never_changed(shelf, tmp_path):
    """The Hub's cache stores models as links; an export from there must be made of real files."""
    blobs, model = tmp_path / "blobs", tmp_path / "model"
    shutil.copytree(shelf[0], blobs)
    model.mkdir()
    for file in blobs.iterdir():
        (model / file.name).symlink_to(file)
    before = snapshot(blobs)
    spec = ExportSpec(str(model), str(tmp_path / "out"), [StackEntry(str(shelf[1]))])
    list(export(spec, RunFolder.create(tmp_path / "run", spec)))
    assert snapshot(blobs) == before and not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))
    assert torch.isfinite(load_file(tmp_path / "out" / WEIGHTS)["model.norm.weight"]).all()
