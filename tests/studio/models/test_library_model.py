"""The library tree under Qt's own model tester: lazy, filtered, and honest about what it carries on a drag."""

from __future__ import annotations

import pytest
from PySide6.QtCore import QModelIndex, Qt

from engine import events
from engine.store.home import Home
from studio.core.catalogue import Catalogue
from studio.models import drag, library_model
from studio.models.library_model import KIND, NOTE, LibraryModel
from tests.studio.core.test_history import taught
from tests.studio.kit import make_adapter, make_model


@pytest.fixture
def catalogue(tmp_path) -> Catalogue:
    home = Home(tmp_path / "home").prepare()
    base = make_model(home)
    for name in ("alpha", "beta"):
        make_adapter(home, base, name)
    make_adapter(home, make_model(home, "Wide", hidden=64), "wide one", hidden=64)
    (home.adapters / "broken").mkdir()
    made = Catalogue(home)
    made.refresh()
    return made


def rows(model: LibraryModel, parent: QModelIndex = QModelIndex()) -> list[QModelIndex]:
    return [model.index(r, 0, parent) for r in range(model.rowCount(parent))]


def names(model: LibraryModel, parent: QModelIndex = QModelIndex()) -> list[str]:
    return [index.data() for index in rows(model, parent)]


def expand(model: LibraryModel, parent: QModelIndex = QModelIndex()) -> int:
    """Open everything; returns the number of rows."""
    if model.canFetchMore(parent):
        model.fetchMore(parent)
    return sum(1 + expand(model, index) for index in rows(model, parent))


@pytest.mark.parametrize("words", ["", "alp", "none"])
def test_it_is_a_sound_model(catalogue, qtmodeltester, words):
    model = LibraryModel(catalogue)
    expand(model)
    model.filter(words)
    qtmodeltester.check(model)
    expand(model)


def test_adapters_stand_below_the_model_they_fit(catalogue):
    model = LibraryModel(catalogue)
    assert names(model) == ["Tiny-Instruct", "Wide", "Cannot be used"]
    assert names(model, model.index(0, 0)) == ["alpha", "beta"]
    assert names(model, model.index(2, 0)) == ["broken"]


def test_what_lies_inside_an_adapter_is_read_only_when_opened(catalogue, monkeypatch):
    read = []
    original = library_model.library.modules
    monkeypatch.setattr(library_model.library, "modules", lambda a: read.append(a.name) or original(a))
    model = LibraryModel(catalogue)
    adapter = rows(model, model.index(0, 0))[1]
    assert model.hasChildren(adapter) and model.canFetchMore(adapter) and read == []
    model.fetchMore(adapter)
    assert read == ["beta"] and names(model, adapter) == ["Layer 1"]
    layer = model.index(0, 0, adapter)
    assert names(model, layer) == ["self_attn.q_proj"] and not model.hasChildren(model.index(0, 0, layer))
    model.fetchMore(adapter)
    assert read == ["beta"]


def test_search_keeps_only_what_matches(catalogue):
    model = LibraryModel(catalogue)
    model.filter("BET")
    assert names(model) == ["Tiny-Instruct"] and names(model, model.index(0, 0)) == ["beta"]
    model.filter("wide")
    assert names(model) == ["Wide"]
    model.filter("nothing like it")
    assert names(model) == []
    model.filter("")
    assert len(names(model)) == 3


def test_it_follows_the_catalogue(catalogue):
    model = LibraryModel(catalogue)
    make_adapter(catalogue.home, catalogue.home.models / "Tiny-Instruct", "gamma")
    catalogue.refresh()
    assert names(model, model.index(0, 0)) == ["alpha", "beta", "gamma"]


def test_only_adapters_travel(catalogue):
    model = LibraryModel(catalogue)
    adapter, base = rows(model, model.index(0, 0))[0], model.index(0, 0)
    assert model.flags(adapter) & Qt.ItemFlag.ItemIsDragEnabled and not model.flags(base) & Qt.ItemFlag.ItemIsDragEnabled
    load = drag.unpack(model.mimeData([base, adapter]))
    assert load.adapters == (catalogue.home.adapters / "alpha",) and not load.files


def test_screen_readers_hear_name_and_note(catalogue):
    model = LibraryModel(catalogue)
    adapter = rows(model, model.index(0, 0))[0]
    assert adapter.data(Qt.ItemDataRole.AccessibleTextRole) == f"alpha, {adapter.data(NOTE)}" == "alpha, LoRA 4"
    assert adapter.data(KIND) == "adapter"


def test_ten_thousand_places_open_quickly(catalogue, benchmark_seconds=2.0):
    """A tree of the size of a large model with all its layers is made without reading anything twice."""
    import time
    from tests.studio.kit import safetensors
    stem = "base_model.model.model.layers.{}.mlp.experts.{}.down_proj.lora_{}.weight"
    safetensors(catalogue.home.adapters / "beta" / "adapter_model.safetensors",
                {stem.format(i, e, p): (1, 1) for i in range(50) for e in range(100) for p in "AB"})
    catalogue.refresh()
    model = LibraryModel(catalogue)
    started = time.perf_counter()
    assert expand(model) > 5000
    assert time.perf_counter() - started < benchmark_seconds


def test_trainings_their_saved_states_and_data_sets_stand_in_the_tree(catalogue):
    """A saved state below its training and below the adapter that came of it."""
    taught(catalogue.home, "alpha", outcome=events.Stopped("pause"), steps=(20,))
    catalogue.refresh()
    model = LibraryModel(catalogue)
    assert names(model) == ["Tiny-Instruct", "Wide", "Trainings", "Data sets", "Cannot be used"]
    run, = rows(model, model.index(2, 0))
    assert (run.data(), run.data(NOTE), names(model, run)) == ("alpha", "Paused", ["Saved at step 20"])
    assert [(i.data(), i.data(NOTE)) for i in rows(model, model.index(3, 0))] == [("alpha.csv", "not there")]
    adapter = rows(model, model.index(0, 0))[0]
    expand(model, adapter)
    assert names(model, adapter) == ["Saved at step 20", "Layer 1"] and rows(model, adapter)[0].data(KIND) == "checkpoint"
    model.filter("alpha.c")
    assert names(model) == ["Data sets"]
