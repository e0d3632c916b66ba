"""The whole window with its real child processes, from Start to a taught, heard and verified model: by mouse, and by keys alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QFileDialog

from engine.store.library import read_adapter, read_model
from studio.jobs.job import State
from tests.journeys.hands import LEFT, click, key, to, wait


@pytest.fixture
def examples(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text("question,answer\n" + "".join(f"What is number {n}?,It is {n * n} of course.\n" for n in range(48)), encoding="utf-8")
    return path


def tab(studio, key: str) -> None:
    bar = studio.window.tabs.tabBar()
    index = ("start", "teach", "mix", "try", "export", "queue").index(key)
    QTest.mouseClick(bar, LEFT, pos=bar.tabRect(index).center())
    QApplication.processEvents()
    assert studio.window.current() == key


def test_from_start_to_a_verified_model_by_mouse(studio, examples, qtbot, monkeypatch):
    torch_before = "torch" in sys.modules  # brought in by tests of the engine, if they ran before in this process
    start, teach, talk, out = (studio.panel(key) for key in ("start", "teach", "try", "export"))

    click(start.cards["teach"])
    assert studio.window.current() == "teach"

    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(examples), ""))
    click(teach.data.choose_button)
    wait(qtbot, lambda: teach.draft.report, "the sentence on the data")
    assert "48" in teach.data.sentence.text()
    click(teach.next)

    card = teach.model._group.buttons()[0]
    click(card)
    assert teach.draft.draft.base == str(studio.home.models / "Tiny-Instruct")
    click(teach.steps["data"])
    wait(qtbot, lambda: "of course" in teach.data.exact.toPlainText(), "the exact text")
    click(teach.steps["plan"])

    click(teach.plan.name)
    QTest.keyClicks(teach.plan.name, "Squares")
    click(teach.plan.prompts)
    QTest.keyClicks(teach.plan.prompts, "What is number 3?")
    click(teach.plan.cards["balanced"])
    wait(qtbot, lambda: "passes over" in teach.plan.price_labels["balanced"].text(), "the price")
    click(teach.plan.start)

    wait(qtbot, lambda: teach.train.job is not None and teach.train.job.state is State.FINISHED, "the end of the training")
    assert teach.train.curve.points > 10 and teach.train.answers and teach.train.verdict.text()
    wait(qtbot, lambda: teach.review.keep.isVisible(), "the review")
    result = teach.train.job.result
    assert result["error_after"] < result["error_before"]
    adapter = read_adapter(Path(result["adapter"]))
    assert adapter.fingerprint == result["fingerprint"]
    click(teach.review.keep)
    assert studio.window.current() == "try" and [e.name for e in studio.document.entries] == [adapter.name]

    wait(qtbot, lambda: talk._ready, "the chat")
    click(talk.question)
    QTest.keyClicks(talk.question, "What is number 4?")
    talk.length.setValue(24)
    click(talk.send)
    wait(qtbot, lambda: talk.turns and not talk.speaking and all(a.stamp for a in talk.turns[-1].answers.values()), "both answers")
    answers = talk.turns[-1].answers
    assert set(answers) == {"stack", "base"} and answers["base"].stamp.adapters == []
    assert [(name, round(strength, 3)) for name, _, strength in answers["stack"].stamp.adapters] == [(adapter.name, 1.0)]
    assert answers["stack"].stamp.adapters[0][1] == adapter.fingerprint

    slider = next(iter(talk.strip.rows.values())).slider
    QTest.mouseClick(slider, LEFT, pos=QPoint(slider.width() // 4, slider.height() // 2))
    strength = studio.document.entries[0].strength
    assert strength < 1.0 and studio.undo.undo_words()
    click(talk.again)
    wait(qtbot, lambda: len(talk.turns) == 2 and not talk.speaking, "the answer at the other strength")
    assert talk.turns[-1].answers["stack"].stamp.adapters[0][2] == pytest.approx(strength)

    tab(studio, "export")
    wait(qtbot, lambda: out.go.isEnabled(), "the export button")
    name = out.name.text()
    click(out.go)
    wait(qtbot, lambda: out.job is not None and not out.job.active, "the export")
    assert out.job.state is State.FINISHED, out.job.error
    wait(qtbot, lambda: out.open_folder.isVisible(), "the proof")
    assert "Verified" in out.result_head.text() and len(out.checks) >= 4 and all(check.passed for check in out.checks)
    assert read_model(studio.home.exports / name).parameters == read_model(studio.home.models / "Tiny-Instruct").parameters
    tab(studio, "queue")
    assert torch_before or "torch" not in sys.modules


def test_the_same_by_keys_alone(studio, examples, qtbot):
    """No mouse anywhere: shortcuts, Tab, arrows, Space, Enter."""
    window, teach, talk, out = studio.window, studio.panel("teach"), studio.panel("try"), studio.panel("export")
    teach.data.paste.clear()

    key(window, Qt.Key.Key_2, Qt.KeyboardModifier.ControlModifier)
    assert window.current() == "teach"
    to(teach.data.paste_button, Qt.Key.Key_Space)
    QApplication.clipboard().setText(examples.read_text(encoding="utf-8"))
    key(QApplication.focusWidget(), Qt.Key.Key_V, Qt.KeyboardModifier.ControlModifier)
    to(teach.data.use_paste, Qt.Key.Key_Space)
    wait(qtbot, lambda: teach.draft.report, "the sentence on the data")
    to(teach.next, Qt.Key.Key_Space)
    to(teach.next, Qt.Key.Key_Space)       # the only model is chosen already
    to(teach.plan.name)
    QTest.keyClicks(teach.plan.name, "Squares by key")
    to(teach.plan.cards["balanced"], Qt.Key.Key_Up)
    assert teach.draft.draft.preset == "quick"
    wait(qtbot, lambda: teach.plan.start.isEnabled(), "the start button")
    to(teach.plan.start, Qt.Key.Key_Space)
    wait(qtbot, lambda: teach.train.job is not None and teach.train.job.state is State.FINISHED, "the end of the training")
    to(teach.review.keep, Qt.Key.Key_Space)
    assert window.current() == "try"
    wait(qtbot, lambda: talk._ready, "the chat")
    to(talk.length)
    QTest.keyClicks(talk.length, "12")
    slider = next(iter(talk.strip.rows.values())).slider
    to(slider, Qt.Key.Key_Left)
    assert studio.document.entries[0].strength == pytest.approx(0.95)
    to(talk.question)
    QTest.keyClicks(talk.question, "What is number 4?")
    key(talk.question, Qt.Key.Key_Return)
    wait(qtbot, lambda: talk.turns and not talk.speaking and all(a.stamp for a in talk.turns[-1].answers.values()), "both answers")
    key(window, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert studio.document.entries[0].strength == 1.0
    key(window, Qt.Key.Key_5, Qt.KeyboardModifier.ControlModifier)
    wait(qtbot, lambda: out.go.isEnabled(), "the export button")
    to(out.go, Qt.Key.Key_Space)
    wait(qtbot, lambda: out.job is not None and out.job.state is State.FINISHED, "the export")
    assert "Verified" in out.result_head.text()
