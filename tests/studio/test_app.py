"""The whole window in process: one registry of actions, every control named and reached, jobs told, nothing lost at closing."""

from __future__ import annotations

import json
import sys
import time

import pytest
from PySide6.QtCore import QEvent, Qt
from PySide6.QtGui import QKeySequence
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QPushButton, QScrollArea, QWidget

from engine import events
from engine.errors import Busy
from engine.specs import FetchSpec, TrainSpec
from engine.store.home import Home
from engine.store.runs import EventLog, RunFolder
from studio.app import Studio
from studio.core.actions import Action
from studio.core import text as language
from studio.core.settings import TEXT_SIZES
from studio.core.text import languages
from studio.core.text import teach as words
from studio.frame_actions import WORKSPACES
from studio.jobs.job import State
from studio.jobs.runner import InlineRunner
from studio.jobs.store import JobStore
from studio.views import a11y, theme
from tests.studio.kit import (FakeTalk, data_report, lint_report, make_adapter, make_model, methods, plan_report, rendered,
                              rows_page)


def patient(spec, run):
    """A job that works until it is asked to stop, and says where it is."""
    step = 0
    while not (run.asked("pause") or run.asked("cancel")):
        step += 1
        yield events.Step(step, 1000, 1.0, 1e-4, 10, 100.0, 500.0, 60.0)
        time.sleep(0.005)
    yield events.Stopped("pause" if run.asked("pause") else "cancel", resumable=True, step=step)


@pytest.fixture
def home(tmp_path) -> Home:
    made = Home(tmp_path / "home").prepare()
    base = make_model(made)
    for name in ("alpha", "beta"):
        make_adapter(made, base, name)
    return made


@pytest.fixture
def open_studio(qapp, qtbot, home, monkeypatch):
    opened = []

    def make(work=patient, shown: bool = True) -> Studio:
        talk = FakeTalk()
        talk.answers = {"describe-data": data_report, "render-row": rendered, "estimate-plan": plan_report, "describe-methods": methods,
                        "lint-data": lint_report, "show-rows": rows_page}
        studio = Studio(qapp, home, runner=InlineRunner(work), talk=talk)
        monkeypatch.setattr(studio.app, "quit", list)
        opened.append(studio)
        if not shown:
            return studio
        studio.window.resize(1400, 900)
        with qtbot.waitActive(studio.window):
            studio.window.show()
            studio.window.activateWindow()
        studio.settle(at_once=True)
        return studio
    yield make
    for studio in opened:
        shut(studio, qtbot)
        studio.window.deleteLater()
        studio.deleteLater()
    language.use("en")
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    theme.apply(qapp, "light")


def shut(studio: Studio, qtbot) -> None:
    if not studio.window.closed:
        with qtbot.waitSignal(studio._closed_behind, timeout=10_000):
            studio.window.close()
        QApplication.processEvents()


def fetch(studio: Studio, title: str = "A job"):
    return studio.queue.submit(FetchSpec(out=str(studio.home.models / "new")), title)


# --- actions -----------------------------------------------------------------------------------

def test_every_action_is_findable_and_explains_itself(open_studio):
    studio = open_studio()
    actions = list(studio.actions)
    assert len(actions) > 30
    assert [a.id for a in actions if not (a.title and a.help and a.category)] == []
    keys = [QKeySequence(a.shortcut).toString() for a in actions if a.shortcut and not a.local]
    assert len(set(keys)) == len(keys) and "" not in keys
    studio.window.open_palette()
    palette = studio.window.palette_box
    missing = []
    for action in actions:
        palette.field.setText(action.title.rstrip("…"))
        if action not in palette.shown():
            missing.append(action.id)
    palette.close()
    assert missing == []


def test_menus_hold_every_action_of_their_category(open_studio):
    studio = open_studio()
    QApplication.processEvents()
    shown = {row.text().split("\t")[0] for menu in studio.window._menus for row in menu.actions() if not row.isSeparator()}
    from studio.core.text import frame
    categories = {phrase() for phrase in frame.MENUS}
    assert {a.title for a in studio.actions if a.category in categories} == shown


def test_ctrl_and_a_number_opens_a_workspace(open_studio):
    studio = open_studio()
    for number in (2, 3, 4, 5, 6, 1):
        QTest.keyClick(studio.window, getattr(Qt.Key, f"Key_{number}"), Qt.KeyboardModifier.ControlModifier)
        assert studio.window.current() == WORKSPACES[number - 1]


def test_what_cannot_be_done_is_grey_with_the_reason_and_its_key_says_it(open_studio):
    studio = open_studio()
    edit = next(m for m in studio.window._menus if m.title() == "Edit")
    edit.aboutToShow.emit()
    row = next(r for r in edit.actions() if r.text().startswith("Undo"))
    assert not row.isEnabled() and row.toolTip() == "There is nothing to undo."
    QTest.keyClick(studio.window, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert studio.activity.said.whole() == "There is nothing to undo."


def test_the_palette_runs_and_refuses(open_studio, qtbot):
    studio = open_studio()
    palette = studio.window.palette_box
    studio.window.open_palette()
    QTest.keyClicks(palette.field, "dark")
    QTest.keyClick(palette.field, Qt.Key.Key_Return)
    assert studio.settings.get("theme") == "dark" and not palette.isVisible()
    qtbot.waitUntil(lambda: theme.tokens().name == "dark")
    studio.window.open_palette()
    QTest.keyClicks(palette.field, "redo")
    QTest.keyClick(palette.field, Qt.Key.Key_Return)
    assert studio.activity.said.whole() == "There is nothing to redo."
    studio.window.open_palette()
    QTest.keyClick(palette.field, Qt.Key.Key_Down)
    assert palette.list.currentIndex().row() == 1
    QTest.keyClick(palette, Qt.Key.Key_Escape)
    assert not palette.isVisible()


def test_late_actions_get_menus_and_shortcuts_too(open_studio, qtbot):
    studio, done = open_studio(), []
    studio.actions.add(Action("late", "Late", lambda: done.append(1), "Ctrl+Alt+9", "help", "File"))
    qtbot.waitUntil(lambda: any(r.text().startswith("Late") for m in studio.window._menus for r in m.actions()))
    QTest.keyClick(studio.window, Qt.Key.Key_9, Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.AltModifier)
    assert done == [1]


# --- everybody can use it ----------------------------------------------------------------------

def test_every_control_has_words_and_is_reached_by_tab(open_studio):
    studio = open_studio()
    studio.add_to_stack([studio.home.adapters / "alpha"])
    for key in WORKSPACES:
        studio.window.go(key)
        QApplication.processEvents()
        assert a11y.unnamed(studio.window) == [], key
        walk(studio, key)


def walk(studio: Studio, key: str) -> None:
    """Tab from the search field until it comes round; everything in the workspace must have had the focus."""
    panel = studio.window.panels[key]
    wanted = {w for w in panel.findChildren(QWidget) if w.isVisible() and w.isEnabled() and w.focusPolicy() & Qt.FocusPolicy.TabFocus
              and not w.focusProxy() and isinstance(w, (QPushButton, *a11y.INTERACTIVE)) and not a11y._is_part(w)}
    studio.library.search.setFocus()
    seen, steps = set(), 0
    while steps < 200:
        QTest.keyClick(QApplication.focusWidget(), Qt.Key.Key_Tab)
        if QApplication.focusWidget() in seen and QApplication.focusWidget() is studio.library.search:
            break
        seen.add(QApplication.focusWidget())
        steps += 1
    assert steps < 200, "Tab never comes round"
    assert [f"{type(w).__name__} {w.accessibleName()}" for w in wanted - seen if type(w).__name__ != "QRadioButton" and not grouped(w)] == []


def grouped(widget: QWidget) -> bool:
    """One button of an exclusive group stands for all: arrows walk the rest."""
    group = getattr(widget, "group", lambda: None)()
    return bool(group and group.exclusive())


def test_the_focus_can_be_seen(open_studio):
    studio = open_studio()
    studio.window.go("mix")
    for control in (studio.mix.base, studio.mix.wide, studio.mix.add_button, studio.library.search):
        studio.activity.setFocus()
        control.clearFocus()
        without = control.grab().toImage()
        control.setFocus(Qt.FocusReason.TabFocusReason)
        assert control.hasFocus() and control.grab().toImage() != without, control.accessibleName()


def test_targets_are_large_enough(open_studio):
    studio = open_studio()
    studio.add_to_stack([studio.home.adapters / "alpha"])
    QApplication.processEvents()
    small = [(type(w).__name__, w.accessibleName(), w.height()) for kind in a11y.INTERACTIVE for w in studio.window.findChildren(kind)
             if w.isVisible() and not a11y._is_part(w) and type(w).__name__ != "QScrollBar" and w.height() < 24]
    assert small == []


# --- the stack over time -----------------------------------------------------------------------

def test_the_stack_is_there_at_the_next_start(open_studio, qtbot):
    first = open_studio()
    first.add_to_stack([first.home.adapters / "alpha", first.home.adapters / "beta"])
    first.mix.list.row(2).slider.setValue(60)
    first.window.go("export")
    shut(first, qtbot)
    second = open_studio()
    assert [(e.name, e.strength) for e in second.document.entries] == [("alpha", 1.0), ("beta", 0.6)]
    assert second.window.current() == "export" and not second.undo.undo_words()


def test_a_full_disk_does_not_keep_the_window_open(open_studio, qtbot, monkeypatch):
    studio = open_studio()

    def full():
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(studio.settings, "save", full)
    studio.panel("teach").draft.draft.name = "Half typed"
    with qtbot.waitSignal(studio.ended, timeout=10_000):
        studio.window.close()


def test_a_window_closed_at_once_keeps_the_stack_of_last_time(open_studio, qtbot):
    first = open_studio()
    first.add_to_stack([first.home.adapters / "alpha"])
    shut(first, qtbot)
    hasty = open_studio(shown=False)
    hasty.window.show()
    shut(hasty, qtbot)
    hasty.settle()                         # the first paint may come late: nobody is asked any more
    assert [e.name for e in open_studio().document.entries] == ["alpha"]


def test_the_stack_is_written_down_while_one_works(open_studio, qtbot):
    studio = open_studio()
    studio.add_to_stack([studio.home.adapters / "alpha"])
    qtbot.waitUntil(lambda: (studio.home.root / "stack.json").exists())
    assert json.loads((studio.home.root / "stack.json").read_text())["entries"][0]["name"] == "alpha"


def test_a_damaged_stack_file_is_told_and_kept_and_the_window_opens(open_studio, home, qtbot):
    (home.root / "stack.json").write_text("{")
    studio = open_studio()
    assert studio.window.notices.notices()[0].words == "The saved stack cannot be read."
    studio.add_to_stack([studio.home.adapters / "alpha"])
    qtbot.waitUntil(lambda: (home.root / "stack.json").exists())
    assert (home.root / "stack-damaged.json").read_text() == "{"


# --- jobs --------------------------------------------------------------------------------------

def test_what_runs_stands_in_the_activity_bar(open_studio, qtbot):
    studio = open_studio()
    fetch(studio, "Fetching")
    qtbot.waitUntil(lambda: studio.activity.progress.isVisible() and "Fetching: step" in studio.activity._what.text())
    studio.window.resize(700, 700)
    QApplication.processEvents()
    assert studio.activity.minimumSizeHint().width() <= studio.activity.width() and not studio.activity.disk.isVisible()
    assert studio.activity.left.text() == "about 60 seconds left"
    studio.activity.pause.click()
    qtbot.waitUntil(lambda: not studio.activity.progress.isVisible())
    assert studio.queue.jobs()[0].state is State.PAUSED and studio.activity._what.accessibleName() == "Nothing is running"
    assert studio.activity.said.text() == "Paused: Fetching"


def test_closing_with_a_running_job_asks_nothing_says_so_and_loses_nothing(open_studio, qtbot, home):
    studio = open_studio()
    job = fetch(studio)
    qtbot.waitUntil(lambda: studio.queue.job(job.id).state is State.RUNNING and bool(studio.running()))
    with qtbot.waitSignal(studio._closed_behind, timeout=10_000):
        studio.window.close()
        assert studio.window.isVisible() and "saved" in studio.window.notices.notices()[0].words
    QApplication.processEvents()
    assert not studio.window.isVisible()
    again = open_studio()
    notice = again.window.notices.notices()[0]
    assert "interrupted" in notice.words and "step" in notice.more
    next(b for b in notice.findChildren(QPushButton) if b.text() == "Resume").click()
    qtbot.waitUntil(lambda: again.queue.job(job.id).state is State.RUNNING)
    assert again.window.current() == "queue"


def test_a_job_whose_program_was_killed_is_offered_again(open_studio, home):
    spec = TrainSpec(base="b", data="d", out=str(home.adapters / "x"))
    store = JobStore(home.database)
    run = RunFolder.create(home.runs / "lost", spec)
    job = store.add(spec, "Teach the shop", run.path)
    store.change(job.id, State.RUNNING)
    with EventLog(run) as log:
        log.write(events.Saved(184, "checkpoint-184"))
    store.close()
    studio = open_studio()
    words = [f"{n.words} {n.more}" for n in studio.window.notices.notices()]
    assert any("Teach the shop" in w and "184" in w for w in words), words


def test_a_failure_is_told_once(open_studio, qtbot):
    def fail(spec, run):
        yield events.Failed({"code": "unreachable", "what": "The download was cut off.", "why": "", "do": "Try again.", "details": "", "facts": {}})
    studio = open_studio(fail)
    fetch(studio)
    qtbot.waitUntil(lambda: [n.words for n in studio.window.notices.notices()] == ["The download was cut off."])
    studio._job_changed(studio.queue.jobs()[0])
    assert len(studio.window.notices.notices()) == 1


def test_the_library_grows_when_a_job_ends(open_studio, qtbot):
    def work(spec, run):
        make_adapter(studio.home, studio.home.models / "Tiny-Instruct", "gamma")
        yield events.Finished({"adapter": str(studio.home.adapters / "gamma")})
    studio = open_studio(lambda spec, run: work(spec, run))
    fetch(studio)
    qtbot.waitUntil(lambda: "gamma" in [a.name for a in studio.catalogue.adapters])


# --- the frame itself --------------------------------------------------------------------------

def test_only_one_studio_a_home(open_studio, qapp, home):
    open_studio()
    with pytest.raises(Busy):
        Studio(qapp, home, runner=InlineRunner(patient), talk=FakeTalk())


def test_text_size_and_theme_stay(open_studio, qtbot):
    studio = open_studio()
    studio.window.run("view.text.larger")
    qtbot.waitUntil(lambda: QApplication.font().pointSizeF() == 11.5)
    studio.window.run("view.text.normal")
    qtbot.waitUntil(lambda: QApplication.font().pointSizeF() == 10)
    studio.settings.set("text_size", TEXT_SIZES[-1])
    studio.window.run("view.text.larger")
    assert studio.activity.said.whole() == "The text is as large as it can be."


def test_a_first_window_gives_both_docks_the_room_they_ask_for(open_studio):
    window = open_studio().window
    window.resize(1360, 860)
    window.inspector.show()
    QApplication.processEvents()
    for dock in (window.library, window.inspector):
        assert dock.width() == dock.widget().sizeHint().width()


@pytest.mark.parametrize("speech", languages())
def test_a_small_window_with_the_largest_letters_scrolls_nowhere_sideways(open_studio, home, speech):
    home.settings.write_text(json.dumps({"version": 1, "language": speech, "text_size": TEXT_SIZES[-1]}))
    studio = open_studio()
    window, steps = studio.window, studio.panel("teach").steps
    studio.add_to_stack([studio.home.adapters / "alpha"])
    studio.panel("teach").start_sample()
    window.inspector.show()
    window.resize(1100, 760)
    window.resizeDocks([window.library, window.inspector], [200, 200], Qt.Orientation.Horizontal)
    for key in WORKSPACES:
        window.go(key)
        for step in steps if key == "teach" else [""]:
            if step:
                studio.panel("teach").show_step(step)
            QApplication.processEvents()
            wide = [(type(area).__name__, area.widget().minimumSizeHint().width(), area.viewport().width())
                    for area in window.findChildren(QScrollArea) if area.isVisible() and area.horizontalScrollBar().maximum()]
            assert (key, step, window.width(), wide) == (key, step, 1100, [])
    assert studio.window.notices.notices() == [] and QApplication.translate("QPlatformTheme", "Close") == {"de": "Schließen"}.get(speech, "Close")
    assert not any(window.tabs.tabText(place) for place in range(5)), "only the current one says its name, if it has room"
    assert steps["review"].text().endswith(words.STEPS["review"]()) and not steps["data"].text().endswith(words.STEPS["data"]())
    window.resize(2400, 760)
    QApplication.processEvents()
    assert all(window.tabs.tabText(place) for place in range(6))


def test_an_adapter_folder_comes_in(open_studio, qtbot, tmp_path, home):
    import shutil
    outside = tmp_path / "down" / "skill"
    shutil.copytree(home.adapters / "beta", outside)
    data = json.loads((outside / "adapter_config.json").read_text()) | {"lora_alpha": 99}
    (outside / "adapter_config.json").write_text(json.dumps(data))
    studio = open_studio()
    studio._bring_in_and_add([outside], 0)
    qtbot.waitUntil(lambda: [e.name for e in studio.document.entries] == ["skill"])
    assert (home.adapters / "skill" / "adapter_model.safetensors").exists()
    (outside / "adapter_model.safetensors").write_bytes(b"rubbish")
    studio.library.bring_in([outside])
    qtbot.waitUntil(lambda: bool(studio.window.notices.notices()))
    assert "adapter_model.safetensors" in studio.window.notices.notices()[0].words


def test_the_window_is_painted_before_anything_slow_is_built(open_studio, qtbot):
    studio, waiting = open_studio(shown=False), []
    studio.window.painted.connect(lambda: waiting.append(sorted(studio._builders)))
    studio.show()
    qtbot.waitUntil(lambda: sorted(studio.window.panels) == sorted(WORKSPACES))
    assert waiting == [["export", "queue", "teach", "try"]]
    qtbot.waitUntil(lambda: studio.catalogue.looked)


def test_a_panel_that_is_asked_for_while_it_is_built_is_whole(open_studio, qtbot):
    studio = open_studio(shown=False)
    steps = studio._building("teach")
    for _ in range(4):
        next(steps)
    half = studio.window.panels["teach"]
    half.steps["plan"].click()             # too early: nothing breaks
    studio.start_sample()
    assert studio.panel("teach") is half and half.plan.start.text() and half.draft.draft.data
    assert not list(steps) and "teach" not in studio._builders


def test_no_torch_in_the_window(open_studio):
    open_studio()
    assert "peft" not in sys.modules or "torch" in sys.modules      # another test of this session may have imported them
    import subprocess
    panels = ", ".join(f"studio.views.{key}_panel" for key in WORKSPACES)
    code = (f"import sys, studio.app, studio.shots, {panels};"
            "print([m for m in ('torch', 'transformers', 'tokenizers', 'safetensors', 'peft') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_first_window_needs_no_plot():
    import subprocess
    code = "import sys, studio.app, studio.views.start_panel; print([m for m in ('pyqtgraph', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_large_letters_leave_the_work_its_room(open_studio, home):
    home.settings.write_text('{"version": 1, "text_size": 1.8}')
    window = open_studio().window
    assert window.library.width() <= 0.32 * window.width()


def test_every_tab_can_be_pressed_in_a_narrow_window(open_studio, home):
    home.settings.write_text('{"version": 1, "text_size": 1.8, "language": "de"}')
    window = open_studio().window
    window.inspector.show()
    window.resize(1000, 700)
    bar, tabs = window.tabs.tabBar(), window.tabs
    for key in WORKSPACES:
        window.go(key)
        QApplication.processEvents()
        assert bar.tabRect(0).left() >= 0 and bar.mapTo(tabs, bar.tabRect(bar.count() - 1).topRight()).x() <= tabs.width(), (key, tabs.width())


def test_what_was_built_is_not_looked_through_for_garbage(open_studio, qtbot):
    import gc
    before = gc.get_freeze_count()
    studio = open_studio(shown=False)
    studio.show()
    qtbot.waitUntil(lambda: not studio._builders and not studio._filler.busy)
    assert gc.isenabled() and gc.get_freeze_count() > before + 10_000
