"""Start, Export and Queue."""

import threading

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtTest import QTest

from engine import events, specs
from engine.errors import Diverged, Unreachable, VerificationFailed
from studio.core.stack_commands import AddAdapter, SetEnabled
from studio.jobs.job import State
from studio.models.jobs_model import PROGRESS, STATE, TITLE, JobsModel
from studio.views import theme
from studio.views.export_panel import ExportPanel
from studio.views.queue_panel import LEAST, QueuePanel
from studio.views.start_panel import StartPanel
from tests.studio.kit import make_model, words_of


# --- start ---------------------------------------------------------------------------------------

@pytest.fixture
def start(world, qtbot):
    panel = StartPanel(world.home, "2 cores, 24 GB memory.", None, world.catalogue, world.queue_bridge)
    qtbot.addWidget(panel)
    panel.show()
    return panel


def test_the_starter_model_is_fetched_from_its_card(start, world, qtbot):
    def fetch(spec, run):
        yield events.Progress("Fetching", 50e6, 145e6, "bytes", 20.0)
        make_model(world.home, "SmolLM2-135M-Instruct")
        yield events.Finished({"path": spec.out})
    world.work["fetch"] = fetch
    assert start._fetch_card.isVisible() and not start.sample.isEnabled() and "fetch it first" in start.sample.toolTip()
    start.library_changed.connect(world.catalogue.refresh)
    start.fetch.click()
    world.start()
    with qtbot.waitSignal(start.library_changed, timeout=10_000):
        world.run_all()
    assert world.queue.jobs()[0].spec == specs.FetchSpec(out=str(world.home.models / "SmolLM2-135M-Instruct"))
    assert not start._fetch_card.isVisible() and start.sample.isEnabled()


def test_a_fetch_that_failed_says_why_and_goes_on_where_it_was(start, world):
    def broken(spec, run):
        yield events.Progress("Fetching", 10, 100, "bytes")
        raise Unreachable("The model could not be fetched.", "There is no network.", "Connect and try again.")
    world.work["fetch"] = broken
    start.fetch.click()
    world.start()
    world.run_all()
    assert "There is no network." in words_of(start) and "Try again" in start.fetch.text()
    world.work["fetch"] = lambda spec, run: iter([events.Finished({"path": spec.out})])
    start.fetch.click()
    world.run_all()
    assert len(world.queue.jobs()) == 1 and world.queue.jobs()[0].state is State.FINISHED


def test_large_actions_lead_on_and_recent_work_is_listed(start, world, qtbot):
    for key, card in start.cards.items():
        with qtbot.waitSignal(start.go) as went:
            QTest.keyClick(card, Qt.Key.Key_Space)
        assert went.args == [key]
    assert "Nothing yet" in words_of(start)
    world.queue.submit(specs.TrainSpec("b", "d", str(world.home.adapters / "x")), "Opening hours")
    world.settle()
    row = start._recent.itemAt(0).widget()
    with qtbot.waitSignal(start.opened) as opened:
        row.click()
    assert opened.args == [1] and "Opening hours" in row.accessibleName()


# --- export --------------------------------------------------------------------------------------

@pytest.fixture
def out(stocked, qtbot):
    stocked.undo.push(AddAdapter(stocked.shop, "Shop answers", base=stocked.base, strength=0.8))
    panel = ExportPanel(stocked.home, stocked.document, stocked.catalogue, stocked.queue_bridge)
    qtbot.addWidget(panel)
    panel.show()
    return panel


def test_the_stack_is_exported_and_the_proof_is_shown(out, stocked):
    assert "Shop answers at 80 %" in words_of(out) and "are free on this disk" in words_of(out) and out.name.text() == "Shop-answers"
    out.go.click()
    spec = stocked.queue.jobs()[0].spec
    assert spec.stack == stocked.document.to_specs() and spec.out == str(stocked.home.exports / "Shop-answers") and spec.prompts
    stocked.start()
    stocked.run_all()
    shown = words_of(out)
    assert "Verified" in out.result_head.text() and "no token's score is further" in shown and "We bake bread" in shown and "receipt.json" in shown
    assert out.open_folder.isVisible()
    out.another.click()
    assert out.name.text() == "Shop-answers-2" and out.go.isEnabled()


def test_what_stands_in_the_way_is_said_before_it_starts(out, stocked, monkeypatch):
    stocked.undo.push(SetEnabled(stocked.document.entries[0].id, False))
    out.refresh()
    assert not out.go.isEnabled() and "no adapter that is on" in words_of(out) and "left out" in words_of(out)
    stocked.undo.undo()
    (stocked.home.exports / "Taken").mkdir()
    out.name.setText("Taken")
    out.name.textEdited.emit("Taken")
    assert not out.go.isEnabled() and "already something called" in out._name_fault.text()
    out.name.setText("Free")
    out.name.textEdited.emit("Free")
    assert out.go.isEnabled()
    monkeypatch.setattr("studio.views.export_panel._free", lambda _: 10)
    out.refresh()
    assert not out.go.isEnabled() and "not enough room" in out._needs.text() and out.name.text() == "Free"


def test_an_export_that_is_not_what_was_heard_is_never_called_verified(out, stocked):
    def differs(spec, run):
        yield events.Checked("reloads", True, "It opens.")
        yield events.Checked("equals-live-stack", False, "The largest logit is 3 away.", 3.0, 1e-3)
        raise VerificationFailed("The file is not what you heard.", "Its numbers differ.", "Export again.")
    stocked.work["export"] = differs
    out.go.click()
    stocked.start()
    stocked.run_all()
    assert "NOT" in out.result_head.text() and "The largest logit" in words_of(out) and "Export again." in words_of(out)
    assert not out.open_folder.isEnabled()


# --- queue ---------------------------------------------------------------------------------------

@pytest.fixture
def queue(world, qtbot):
    for n in range(3):
        world.queue.submit(specs.TrainSpec("b", "d", str(world.home.adapters / f"x{n}")), f"Job {n}")
    panel = QueuePanel(world.queue_bridge)
    qtbot.addWidget(panel)
    panel.show()
    world.settle()
    return panel


def titles(queue):
    return [queue.model.index(row, TITLE).data() for row in range(queue.model.rowCount())]


def test_the_table_follows_the_queue(world, qtbot, qtmodeltester):
    model = JobsModel(world.queue_bridge)
    qtmodeltester.check(model)
    world.queue.submit(specs.TrainSpec("b", "d", str(world.home.adapters / "x")), "Opening hours")
    world.settle()
    assert model.rowCount() == 1 and "Waiting" in model.index(0, STATE).data()
    world.start()
    world.run_all()
    assert "Done" in model.index(0, STATE).data() and model.index(0, STATE).data(Qt.ItemDataRole.AccessibleTextRole) == "Done"
    world.queue.remove(1)
    world.settle()
    assert model.rowCount() == 0


def test_jobs_move_and_go_by_keys(queue, world):
    queue.select(3)
    queue.view.setFocus()
    QTest.keyClick(queue.view, Qt.Key.Key_Up, Qt.KeyboardModifier.AltModifier)
    assert titles(queue) == ["Job 0", "Job 2", "Job 1"] and queue.current().title == "Job 2"
    QTest.keyClick(queue.view, Qt.Key.Key_Space)
    world.settle()
    assert queue.current().state is State.PAUSED and queue.resume.isEnabled()
    QTest.keyClick(queue.view, Qt.Key.Key_Space)
    world.settle()
    assert queue.current().state is State.WAITING
    QTest.keyClick(queue.view, Qt.Key.Key_Delete)
    world.settle()
    assert titles(queue) == ["Job 0", "Job 1"]
    queue.select(1)
    queue.cancel.click()
    world.settle()
    assert queue.current().state is State.CANCELLED and queue.resume.isEnabled() and not queue.cancel.isEnabled()


def test_progress_and_failure_are_told_and_can_be_copied(queue, world, qtbot):
    told = threading.Event()

    def work(spec, run):
        yield events.Note("Reading the examples.")
        yield events.Step(5, 10, 2.0, 1e-4, 10, 10.0, 100.0, 60.0)
        told.wait(10)
        raise Unreachable("The cable was pulled.", "No network.", "Plug it in.", details="errno 101")
    world.work["train"] = work
    queue.select(1)
    world.start()
    qtbot.waitUntil(lambda: (world.settle(), "50 %" in (queue.model.index(0, PROGRESS).data() or ""))[1], timeout=10_000)
    assert "50 %" in queue.model.index(0, PROGRESS).data() and "left" in queue.model.index(0, PROGRESS).data()
    assert queue.pause.isEnabled() and not queue.remove.isEnabled()
    told.set()
    world.run_all()
    queue._show_log()
    assert "The cable was pulled." in words_of(queue) and "Plug it in." in words_of(queue)
    assert "Reading the examples." in queue._log.toPlainText()
    queue.copy.click()
    assert all(part in QGuiApplication.clipboard().text() for part in ("Job 0", "No network.", "errno 101"))


def test_what_would_end_as_before_does_not_simply_go_on(queue, world):
    """The error is no number from the same step on, to the bit: the Train page has a way out."""
    def runs_away(spec, run):
        yield events.Progress("Loading the model")
        raise Diverged("The training ran away at step 3.", "The learning speed was too high here.", "Go on with half the learning speed.")
    world.work["train"] = runs_away
    world.start()
    world.run_all()
    queue.select(1)
    assert queue.current().state is State.FAILED and not queue.resume.isEnabled() and "same way" in queue.resume.toolTip()
    QTest.keyClick(queue.view, Qt.Key.Key_Space)
    world.settle()
    assert queue.current().state is State.FAILED and queue.open.isEnabled()
    world.queue.slow_down(1)
    world.run_all()
    assert queue.current().attempt == 2


def test_an_empty_queue_says_what_it_is_for(world, qtbot):
    panel = QueuePanel(world.queue_bridge)
    qtbot.addWidget(panel)
    panel.show()
    assert "Nothing to do" in words_of(panel) and not panel.view.isVisible()


def test_a_job_that_could_not_be_removed_is_not_called_removed(queue, world, monkeypatch):
    world.queue.submit(specs.FetchSpec(out=str(world.home.models / "m")), "Fetch it")
    world.settle()
    said, failed = [], []
    queue.said.connect(said.append)
    queue.failed.connect(failed.append)

    def refuse(_id):
        raise Unreachable("The job has just begun.")
    monkeypatch.setattr(world.queue, "remove", refuse)
    queue.remove.click()
    assert len(failed) == 1 and said == []


def test_nothing_of_the_queue_is_squeezed_by_large_letters(queue, world, qapp, qtbot):
    theme.apply(qapp, "light", 1.8)
    try:
        queue.resize(620, 500)
        qapp.processEvents()
        queue.resize(620, max(500, queue.minimumSizeHint().height()))      # as the page does that scrolls
        qapp.processEvents()
        letters = queue.view.fontMetrics()
        assert queue._log.height() >= LEAST * queue._log.fontMetrics().lineSpacing()
        assert queue._card.height() >= queue._card.layout().totalHeightForWidth(queue._card.width())
        assert queue.view.columnWidth(TITLE) >= 12 * letters.averageCharWidth() and queue.view.rowHeight(0) >= letters.height()
    finally:
        theme.apply(qapp, "light")


def test_icons_are_as_high_as_the_letters(queue, qapp):
    before = queue.pause.iconSize().height()
    theme.apply(qapp, "light", 1.8)
    try:
        assert queue.pause.iconSize().height() > before
    finally:
        theme.apply(qapp, "light")
    assert queue.pause.iconSize().height() == before
