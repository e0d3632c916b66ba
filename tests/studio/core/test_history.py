"""Trainings, their saved states and their examples are told from the run folders alone, whatever lies there."""

import json

import pytest

from engine import events
from engine.specs import ExportSpec, TrainSpec
from engine.store.home import Home
from engine.store.runs import EventLog, RunFolder
from studio.core.catalogue import Catalogue
from studio.core.history import read_run, read_runs
from tests.studio.kit import make_adapter, make_model


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home").prepare()


def taught(home: Home, name: str, data: str = "", outcome: events.Event | None = None, steps: tuple[int, ...] = ()) -> RunFolder:
    run = RunFolder.create(home.runs / name, TrainSpec(base=str(home.models / "Tiny-Instruct"), data=data or str(home.root / f"{name}.csv"),
                                                       out=str(home.adapters / name)))
    for step in steps:
        folder = run.checkpoints / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "adapter.safetensors").write_bytes(bytes(1000 + step))
    if outcome is not None:
        with EventLog(run) as log:
            log.write(outcome)
    return run


def test_a_state_that_is_dropped_while_it_is_looked_at_does_not_hide_its_run(home, monkeypatch):
    def size(folder):
        if folder.name == "step-00000020":
            raise FileNotFoundError(folder)
        return 1

    monkeypatch.setattr("studio.core.history.folder_bytes", size)
    folder = taught(home, "Shop", steps=(20, 40)).path
    assert [saved.step for saved in read_run(folder).checkpoints] == [40]


@pytest.mark.parametrize("outcome, state", [(None, ""), (events.Finished({"steps": 40}), "finished"), (events.Stopped("pause"), "paused"),
                                            (events.Stopped("cancel"), "cancelled"), (events.Failed({"what": "It broke."}), "failed")])
def test_a_training_is_told_with_its_end_and_its_saved_states(home, outcome, state):
    run = read_run(taught(home, "Shop", outcome=outcome, steps=(20, 40)).path)
    assert (run.name, run.state, [c.step for c in run.checkpoints], run.bytes) == ("Shop", state, [40, 20], 2060)
    assert run.result == ({"steps": 40} if state == "finished" else {})


def test_other_jobs_and_damaged_folders_are_none(home):
    RunFolder.create(home.runs / "export", ExportSpec(base="b", out=str(home.root / "x"), stack=[]))
    for name, said in (("torn", "{"), ("list", "[]"), ("odd", json.dumps({"kind": "train", "passes": "many"})), ("unknown", '{"kind": "knit"}')):
        (home.runs / name).mkdir()
        (home.runs / name / "spec.json").write_text(said)
    odd = taught(home, "odd checkpoint")
    (odd.checkpoints / "step-last").mkdir(parents=True)
    (home.runs / "empty").mkdir()
    taught(home, "Shop")
    assert [run.name for run in read_runs(home)] == ["Shop"]


def test_data_sets_are_what_runs_recipes_pastes_and_corrections_hold(home):
    base = make_model(home)
    shop = home.root / "shop.csv"
    shop.write_text("q,a")
    taught(home, "Shop", str(shop))
    taught(home, "Shop 2", str(shop))
    taught(home, "Old", str(home.root / "gone.csv"))
    recipe = make_adapter(home, base, "Brought") / "recipe.json"
    recipe.write_text(json.dumps({"spec": {"data": str(shop)}}))
    (make_adapter(home, base, "Odd") / "recipe.json").write_text(json.dumps({"spec": {"data": 7}}))
    home.corrections.mkdir(exist_ok=True)
    (home.corrections / "Shop.jsonl").write_text("{}")
    catalogue = Catalogue(home)
    catalogue.refresh()
    assert [(d.name, d.there, d.used_by) for d in catalogue.snapshot.datasets] == [
        ("gone.csv", False, ("Old",)), ("shop.csv", True, ("Brought", "Shop", "Shop 2")), ("Shop.jsonl", True, ())]


def test_the_catalogue_tells_when_a_state_was_saved(home):
    run, told = taught(home, "Shop"), []
    catalogue = Catalogue(home)
    catalogue.refresh()
    catalogue.subscribe(lambda: told.append(len(catalogue.snapshot.runs[0].checkpoints)))
    catalogue.refresh()
    (run.checkpoints / "step-00000010").mkdir(parents=True)
    catalogue.refresh()
    assert told == [1]
