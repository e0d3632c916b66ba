"""The library under hand: search, what stays open, what an empty one offers, files dropped from outside; and the inspector beside it."""

from __future__ import annotations

import json
import shutil

import pytest
from PySide6.QtCore import QMimeData, QModelIndex, QPoint, QPointF, QUrl, Qt
from PySide6.QtGui import QDragEnterEvent, QDropEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QLabel, QPushButton

from engine import events
from engine.errors import BadAdapter
from studio.core.catalogue import modules
from studio.models.background import Background
from studio.models.library_model import KIND
from studio.views.inspector_panel import InspectorPanel, facts_of
from studio.views.library_panel import LibraryPanel
from studio.views.a11y import unnamed
from tests.studio.core.test_history import taught
from tests.studio.kit import make_adapter, words_of


@pytest.fixture
def background(qapp):
    made = Background()
    yield made
    made.close()


@pytest.fixture
def panel(stocked, background, qtbot):
    made = LibraryPanel(stocked.catalogue, background, list, list)
    qtbot.addWidget(made)
    made.resize(300, 600)
    made.show()
    return made


def names(panel, parent=QModelIndex()) -> list[str]:
    return [panel.model.index(r, 0, parent).data() for r in range(panel.model.rowCount(parent))]


def test_what_is_open_and_chosen_stays_so(panel, stocked):
    adapter = panel.model.index(0, 0, panel.model.index(0, 0))
    panel.tree.setExpanded(adapter, True)
    panel.tree.setCurrentIndex(panel.model.index(1, 0, panel.model.index(0, 0)))
    chosen = panel.tree.currentIndex().data()
    make_adapter(stocked.home, stocked.base, "Another")
    stocked.catalogue.refresh()
    top = panel.model.index(0, 0)
    assert names(panel, top) == ["Another", "Lighthouse keeper", "Shop answers"]
    assert [panel.tree.isExpanded(panel.model.index(r, 0, top)) for r in range(3)] == [False, True, False]
    assert [i.data() for i in panel.tree.selectedIndexes()] == [chosen]


def test_search_waits_for_the_last_letter(panel, qtbot):
    QTest.keyClicks(panel.search, "light")
    assert len(names(panel, panel.model.index(0, 0))) == 2
    qtbot.waitUntil(lambda: names(panel, panel.model.index(0, 0)) == ["Lighthouse keeper"])
    QTest.keyClicks(panel.search, "zzz")
    qtbot.waitUntil(lambda: names(panel) == [])
    assert panel.search.isVisible() and panel._no_hits.isVisible() and "called so" in panel._no_hits.text()
    panel.search.clear()
    qtbot.waitUntil(panel.tree.isVisible)


def test_an_empty_library_offers_the_one_thing_to_do(world, background, qtbot):
    asked = []
    panel = LibraryPanel(world.catalogue, background, list, lambda: asked.append(1))
    qtbot.addWidget(panel)
    panel.show()
    button = next(b for b in panel.findChildren(QPushButton) if b.isVisible())
    button.click()
    assert asked == [1] and not panel.tree.isVisible()


def test_enter_and_double_click_mean_add(stocked, background, qtbot):
    added = []
    panel = LibraryPanel(stocked.catalogue, background, added.append, list)
    qtbot.addWidget(panel)
    panel.show()
    panel.select(stocked.shop)
    QTest.keyClick(panel.tree, Qt.Key.Key_Return)
    panel.tree.doubleClicked.emit(panel.tree.currentIndex())
    assert added == [[stocked.shop]] * 2
    panel.tree.setCurrentIndex(panel.model.index(0, 0))
    QTest.keyClick(panel.tree, Qt.Key.Key_Return)
    assert len(added) == 2 and not panel.tree.isExpanded(panel.model.index(0, 0))


def drop(panel, *paths) -> None:
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    for make, at in ((QDragEnterEvent, QPoint(50, 50)), (QDropEvent, QPointF(50, 50))):
        event = make(at, Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier)
        QApplication.sendEvent(panel, event)
        assert event.isAccepted()


def test_an_adapter_folder_dropped_on_the_library_is_copied_into_it(panel, stocked, tmp_path, qtbot):
    outside = tmp_path / "down" / "skill"
    shutil.copytree(stocked.shop, outside)
    data = json.loads((outside / "adapter_config.json").read_text()) | {"lora_alpha": 77}
    (outside / "adapter_config.json").write_text(json.dumps(data))
    with qtbot.waitSignal(panel.imported) as caught:
        drop(panel, outside / "adapter_config.json")
    assert caught.args[0] == [stocked.home.adapters / "skill"] and [a.name for a in panel.tree.adapters()] == ["skill"]


def test_what_is_no_adapter_or_a_bad_one_is_refused_in_words(panel, tmp_path, qtbot):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with qtbot.waitSignal(panel.failed) as caught:
        drop(panel, tmp_path / "photo.jpg")
    assert "no adapter" in caught.args[0].what
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "adapter_config.json").write_text("{}")
    (bad / "adapter_model.bin").write_bytes(b"\x80\x02")
    with qtbot.waitSignal(panel.failed) as caught:
        drop(panel, bad)
    assert isinstance(caught.args[0], BadAdapter) and "could run a program" in caught.args[0].why


# --- the inspector -----------------------------------------------------------------------------

def words(panel: InspectorPanel) -> str:
    return " | ".join(getattr(label, "whole", label.text)() for label in panel.findChildren(QLabel))


def test_the_inspector_tells_the_facts_of_whatever_is_chosen(stocked, qtbot):
    catalogue = stocked.catalogue
    (stocked.shop / "recipe.json").write_text(json.dumps({
        "base_fingerprint": catalogue.models[0].fingerprint, "data": {"file": "answers.csv", "rows": 143}, "scores": {"before": 3.2, "after": 1.11},
        "spec": {"passes": 3.0}, "made": "2026-11-20T10:00:00Z"}))
    catalogue.refresh()
    added = []
    panel = InspectorPanel(catalogue, added.append)
    qtbot.addWidget(panel)
    panel.show_thing(catalogue.adapter(stocked.shop))
    assert all(part in words(panel) for part in ("Shop answers", "LoRA", "Tiny-Instruct", "answers.csv", "143", "3.20 → 1.11", str(stocked.shop)))
    next(b for b in panel.findChildren(QPushButton) if b.text() == "Add to stack").click()
    assert added == [[stocked.shop]]
    panel.show_thing(modules(catalogue.adapter(stocked.shop))[0])
    assert "model.layers.0.self_attn.q_proj" in words(panel) and "4 × 32" in words(panel)
    panel.show_thing(catalogue.models[0])
    assert "llama" in words(panel) and "F32" in words(panel)
    panel.show_thing(BadAdapter("What.", "Why.", "Do.", path="/x"))
    assert "Why." in words(panel) and "Do." in words(panel)


def test_what_was_taught_here_can_be_rebuilt(stocked, qtbot):
    panel = InspectorPanel(stocked.catalogue, list)
    qtbot.addWidget(panel)

    def rebuild():
        return [b for b in panel.findChildren(QPushButton) if b.text() == "Rebuild"]

    panel.show_thing(stocked.catalogue.adapter(stocked.shop))
    assert not rebuild(), "nobody knows how it was taught"
    (stocked.shop / "recipe.json").write_text(json.dumps({"spec": {"passes": 3.0}, "result": {}, "votes": ["taught", "same"],
                                                          "review": {"wins": 5, "same": 2, "losses": 1}}))
    stocked.catalogue.refresh()
    assert "5 better, 2 same, 1 worse" in words(panel) and "1 of 2" in words(panel)
    with qtbot.waitSignal(panel.rebuild_wanted) as heard:
        rebuild()[-1].click()
    assert heard.args[0].path == stocked.shop


def test_a_thing_that_is_gone_leaves_the_inspector_empty(stocked, qtbot):
    panel = InspectorPanel(stocked.catalogue, list)
    qtbot.addWidget(panel)
    panel.show_thing(stocked.catalogue.adapter(stocked.shop))
    shutil.rmtree(stocked.shop)
    stocked.catalogue.refresh()
    assert panel.thing() is None and "Nothing is selected" in words(panel)


def test_a_library_that_is_looked_at_again_leaves_the_inspector_under_the_hand(stocked, qtbot):
    panel = InspectorPanel(stocked.catalogue, list)
    qtbot.addWidget(panel)
    panel.show_thing(stocked.catalogue.adapter(stocked.shop))
    content = panel.widget()
    stocked.catalogue.refresh()
    assert panel.widget() is content
    shutil.rmtree(stocked.keeper)
    stocked.catalogue.refresh()
    assert panel.widget() is content
    (stocked.shop / "recipe.json").write_text(json.dumps({"made": "2026-01-01"}))
    stocked.catalogue.refresh()
    assert panel.widget() is not content


@pytest.mark.parametrize("recipe", [{"data": 5, "scores": [], "spec": None, "made": 3}, {"data": {"file": "x" * 10_000, "rows": "many"}},
                                    {"scores": {"before": "a", "after": 1}}])
def test_a_recipe_from_anywhere_cannot_break_it(stocked, recipe):
    (stocked.shop / "recipe.json").write_text(json.dumps(recipe))
    stocked.catalogue.refresh()
    _, title, _, sections = facts_of(stocked.catalogue.adapter(stocked.shop), stocked.catalogue)
    assert title == "Shop answers" and all(len(value) < 400 for _, facts in sections for _, value in facts)


def test_icons_tell_the_kinds_apart(panel):
    top = panel.model.index(0, 0)
    assert {top.data(KIND), panel.model.index(0, 0, top).data(KIND)} == {"model", "adapter"}


def test_a_training_leads_to_teach_and_a_data_set_is_taught_from(panel, stocked, qtbot):
    file = stocked.home.root / "alpha.csv"
    file.write_text("q,a")
    run = taught(stocked.home, "alpha", outcome=events.Finished({"steps": 1200, "error_before": 3.25, "error_after": 2.5}), steps=(20,))
    stocked.catalogue.refresh()
    inspector = InspectorPanel(stocked.catalogue, list)
    qtbot.addWidget(inspector)
    inspector.show()
    panel.selected.connect(inspector.show_thing)
    heard = []
    inspector.run_wanted.connect(heard.append)
    inspector.data_wanted.connect(heard.append)
    for key, said, go in ((f"run {run.path}", "1,200", run.path), (f"{run.checkpoints / 'step-00000020'} under run", "Of the training", run.path),
                          (f"data {file}", "alpha", file)):
        panel.tree.setCurrentIndex(panel.model.find(key))
        assert said in words_of(inspector) and not unnamed(inspector)
        qtbot.keyClick(inspector.findChildren(QPushButton)[0], Qt.Key.Key_Space)
        assert heard[-1] == go
    shutil.rmtree(run.checkpoints)
    panel.tree.setCurrentIndex(panel.model.find(f"{run.checkpoints / 'step-00000020'} under run"))
    stocked.catalogue.refresh()
    assert "3.25 → 2.50" in words_of(inspector)        # the training that it belonged to
