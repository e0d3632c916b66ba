"""A model of the Hub arrives in the library whole, or not at all; what does not belong there never comes."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from engine.bases import download, hub
from engine.bases.fetch import _impatient, fetch
from engine.bases.load import load_model
from engine.errors import BadModel, Cancelled, Unreachable
from engine.events import Finished, Note, Stopped
from engine.specs import FetchSpec
from engine.store.home import Home
from engine.store.runs import RunFolder
from tests.engine.bases.test_gguf_import import write_gguf

MODEL = "org/tiny"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_wait", lambda seconds, stopped: None)


@pytest.fixture
def files(base_folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in base_folder.iterdir()}


@pytest.fixture
def out(studio_home: Path) -> Path:
    return Home(studio_home).models / "tiny"


def job(out: Path, model: str = MODEL, number: int = 1) -> tuple[FetchSpec, RunFolder]:
    spec = FetchSpec(out=str(out), model=model)
    return spec, RunFolder.create(out.parents[2] / "runs" / str(number), spec)


def test_it_arrives_and_can_be_loaded(web, files, out: Path):
    web.put_model(MODEL, files)
    events = list(fetch(*job(out)))
    assert events[-1] == Finished(result={"path": str(out)})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
    assert load_model(out).config.model_type == "llama"
    progress = [e for e in events if e.kind == "progress"]
    assert progress[-1].done == progress[-1].total == sum(map(len, files.values()))


def test_nothing_stays_in_the_downloads(web, files, out: Path):
    web.put_model(MODEL, files)
    list(fetch(*job(out)))
    assert not list(Home.default().downloads.iterdir())
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]


def test_pickles_programs_and_paths_are_never_asked_for(web, files, out: Path):
    evil = {"pytorch_model.bin": b"pickle", "modeling_tiny.py": b"code", "../../evil.json": b"{}", "sub/model.safetensors": b"x",
            "adapter_model.safetensors": b"x", "training_args.bin": b"x"}
    web.put_model(MODEL, files | evil)
    list(fetch(*job(out)))
    assert {path.name for path in out.iterdir()} == set(files)
    assert not [path for path, _, _ in web.asked if any(path.endswith(name.rpartition("/")[2]) for name in evil if "model.safetensors" not in name)]


def test_weights_are_not_fetched_twice(web, files, out: Path):
    pieces = {"model-00001-of-00001.safetensors": files["model.safetensors"], "model.safetensors.index.json": b"{}"}
    web.put_model(MODEL, files | pieces)
    list(fetch(*job(out)))
    assert {path.name for path in out.iterdir()} == set(files)


def test_a_model_that_is_there_is_left_alone(web, files, out: Path):
    web.put_model(MODEL, files)
    list(fetch(*job(out)))
    web.asked.clear()
    events = list(fetch(*job(out, number=2)))
    assert isinstance(events[-1], Finished) and isinstance(events[0], Note) and not web.asked


def test_a_damaged_model_is_fetched_again(web, files, out: Path):
    web.put_model(MODEL, files)
    list(fetch(*job(out)))
    (out / "model.safetensors").write_bytes(b"")
    list(fetch(*job(out, number=2)))
    assert (out / "model.safetensors").read_bytes() == files["model.safetensors"]


@pytest.mark.parametrize("request_", ["cancel", "pause"])
def test_a_stopped_job_leaves_no_model_and_goes_on_from_what_arrived(web, files, out: Path, request_: str):
    web.put_model(MODEL, files)
    spec, run = job(out)
    events = []
    for event in fetch(spec, run):
        events.append(event)
        if event.kind == "progress" and event.done > 1000:
            run.ask(request_)
    assert events[-1] == Stopped(request_, resumable=True)
    assert not out.exists()
    fetched = [path for path, _, _ in web.asked]
    web.asked.clear()
    run.clear()
    assert isinstance(list(fetch(spec, run))[-1], Finished)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
    assert set(fetched[1:-1]).isdisjoint(path for path, _, _ in web.asked), "something whole was fetched twice"


def test_a_changed_file_is_refused(web, files, out: Path):
    web.put_model(MODEL, files)
    damaged = bytearray(files["model.safetensors"])
    damaged[-1] ^= 1
    web.files[f"/{MODEL}/resolve/c0ffee/model.safetensors"] = bytes(damaged)
    with pytest.raises(Unreachable, match="checksum"):
        list(fetch(*job(out)))
    assert not out.exists()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_model_that_is_not_given_out_is_said(web, out: Path, status: int):
    web.status[f"/api/models/{MODEL}/revision/main"] = status
    web.files[f"/api/models/{MODEL}/revision/main"] = b""
    with pytest.raises(BadModel, match="does not give out"):
        list(fetch(*job(out)))


def test_a_model_with_pickles_only_is_refused_before_anything_is_fetched(web, files, out: Path):
    del files["model.safetensors"]
    web.put_model(MODEL, files | {"pytorch_model.bin": b"pickle"})
    with pytest.raises(BadModel, match="safetensors"):
        list(fetch(*job(out)))
    assert len(web.asked) == 1


@pytest.mark.parametrize("name", ["tiny", "../x/y", "org/../y", "a/b/c", "http://x/y", ""])
def test_a_name_that_is_none_asks_nobody(web, out: Path, name: str):
    with pytest.raises(BadModel, match="not a name"):
        list(fetch(*job(out, name)))
    assert not web.asked


@pytest.mark.parametrize("answer", [b"[]", b"{}", b'{"sha": 1, "siblings": [{}]}', b'{"sha": "x", "siblings": 3}', b"not json"])
def test_a_nonsensical_answer_is_a_sentence(web, out: Path, answer: bytes):
    web.files[f"/api/models/{MODEL}/revision/main"] = answer
    with pytest.raises((Unreachable, BadModel)):
        list(fetch(*job(out)))


def test_a_forbidden_hub_is_not_asked(web, out: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unreachable, match="switched off"):
        list(fetch(*job(out)))
    assert not web.asked and hub.switched_off()


def test_a_model_that_needs_its_own_code_is_refused_and_not_left_in_the_library(web, files, out: Path):
    config = json.loads(files["config.json"]) | {"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "code.Model"}}
    web.put_model(MODEL, files | {"config.json": json.dumps(config).encode()})
    with pytest.raises(BadModel, match="program code"):
        list(fetch(*job(out)))
    assert not out.exists()


def test_the_starter_comes_from_the_hub_where_it_can_be_reached(web, files, out: Path):
    from engine.bases.starter import HUB_NAME

    web.put_model(HUB_NAME, files)
    assert isinstance(list(fetch(*job(out, "starter")))[-1], Finished)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files


def test_what_a_killed_job_left_beside_the_model_is_swept(web, files, out: Path):
    left = out.parent / ".tiny.0123abcd.part"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    web.put_model(MODEL, files)
    list(fetch(*job(out)))
    assert not left.exists()


def test_a_stop_is_heard_in_the_middle_of_slow_work():
    """Reading a large file can take seconds in which nothing can be asked."""
    busy, go_on = threading.Event(), threading.Event()

    def slowly():
        yield Note("begun")
        busy.set()
        go_on.wait(30)
        yield Note("never heard")

    heard, begun = [], time.monotonic()
    with pytest.raises(Cancelled):
        for event in _impatient(slowly(), busy.is_set):
            heard.append(event.text)
    go_on.set()
    assert heard == ["begun"] and time.monotonic() - begun < 2


def test_a_stop_is_heard_while_a_large_file_is_copied(base_folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch):
    spec, run = job(out, str(base_folder))
    go_on, copied = threading.Event(), []

    def slowly(source, target):
        run.ask("cancel")
        go_on.wait(10)
        copied.append(source)

    monkeypatch.setattr("engine.bases.fetch._link", slowly)
    try:
        assert list(fetch(spec, run))[-1] == Stopped("cancel", resumable=True) and not copied and not out.exists()
        assert not list(out.parent.glob(".tiny.*.part"))
    finally:
        go_on.set()


def test_slow_work_that_fails_fails_here():
    def slowly():
        yield Note("begun")
        raise BadModel("No.")

    with pytest.raises(BadModel, match="No."):
        list(_impatient(slowly(), lambda: False))


def test_a_folder_of_this_computer_comes_in_without_its_programs(base_folder: Path, tmp_path: Path, out: Path):
    source = tmp_path / "mine"
    shutil.copytree(base_folder, source)
    for name in ("modeling_mine.py", "pytorch_model.bin"):
        (source / name).write_text("print('never')")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    events = list(fetch(*job(out, str(source))))
    assert events[-1] == Finished(result={"path": str(out)}) and load_model(out).config.model_type == "llama"
    assert {path.name for path in out.iterdir()} == {path.name for path in base_folder.iterdir()}
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_a_folder_of_links_comes_in_as_files(base_folder: Path, tmp_path: Path, out: Path):
    """As the Hub's own cache keeps its models."""
    source, blobs = tmp_path / "snapshots" / "c0ffee", shutil.copytree(base_folder, tmp_path / "blobs")
    source.mkdir(parents=True)
    for blob in blobs.iterdir():
        (source / blob.name).symlink_to(Path("..", "..", "blobs", blob.name))
    assert list(fetch(*job(out, str(source))))[-1] == Finished(result={"path": str(out)})
    assert not [file for file in out.iterdir() if file.is_symlink()] and load_model(out).config.model_type == "llama"


def test_a_folder_that_is_no_model_changes_nothing(tmp_path: Path, out: Path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(BadModel):
        list(fetch(*job(out, str(tmp_path / "photos"))))
    assert not out.exists()


def test_a_gguf_file_is_unpacked_and_what_it_lost_is_told(tmp_path: Path, out: Path):
    write_gguf(tmp_path / "m.gguf")
    events = list(fetch(*job(out, str(tmp_path / "m.gguf"))))
    assert any(isinstance(e, Note) and "stays lost" in e.text for e in events) and load_model(out).config.model_type == "llama"


@pytest.mark.parametrize("content", [None, b"", b"GGUF" + bytes(40)])
def test_a_gguf_file_that_is_none_changes_nothing(tmp_path: Path, out: Path, content):
    if content is not None:
        (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(BadModel):
        list(fetch(*job(out, str(tmp_path / "m.gguf"))))
    assert not out.exists()
