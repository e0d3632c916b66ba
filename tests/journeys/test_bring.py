"""From a person's own files to a reviewed adapter in the real window: a workbook, a chat of WhatsApp, a folder of Word files."""

from __future__ import annotations

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest

from engine.store.library import read_adapter
from studio.jobs.job import State
from tests.journeys.hands import InFileDialog, click, key, to, wait

PAIRS = [(f"What is number {n}?", f"It is {n * n} of course.") for n in range(40)]


def workbook(folder):
    from openpyxl import Workbook

    book = Workbook()
    book.active.append(["Frage", "Antwort"])
    for pair in PAIRS:
        book.active.append(list(pair))
    book.save(folder / "answers.xlsx")
    return folder / "answers.xlsx"


def chat(folder):
    lines = []
    for n, (ask, say) in enumerate(PAIRS):
        day = f"{1 + n % 28:02d}.0{1 + n // 28}.24"
        lines += [f"{day}, 09:{n:02d} - Customer: {ask}", f"{day}, 10:{n:02d} - The bakery: {say}"]
    path = folder / "WhatsApp Chat.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def letters(folder):
    from docx import Document

    path = folder / "letters"
    path.mkdir()
    for part in range(4):
        document = Document()
        for ask, say in PAIRS[part::4]:
            document.add_paragraph(f"Q: {ask}")
            document.add_paragraph(f"A: {say}")
        document.save(path / f"letter {part}.docx")
    return path


BRINGS = {"workbook": workbook, "whatsapp": chat, "folder of docx": letters}


@pytest.fixture(params=BRINGS)
def brought(request, tmp_path):
    return BRINGS[request.param](tmp_path)


def test_by_mouse(studio, brought, qtbot):
    teach = studio.panel("teach")
    click(studio.panel("start").cards["teach"])
    dialog = InFileDialog(brought, "mouse")
    click(teach.data.folder_button if brought.is_dir() else teach.data.choose_button)
    assert dialog.answered and teach.draft.draft.data == str(brought)
    wait(qtbot, lambda: teach.draft.report, "the sentence on the data")
    assert "40" in teach.data.sentence.text()
    click(teach.next)
    click(teach.model._group.buttons()[0])
    click(teach.steps["plan"])
    click(teach.plan.name)
    QTest.keyClicks(teach.plan.name, "Squares")
    click(teach.plan.cards["quick"])
    wait(qtbot, teach.plan.start.isEnabled, "the start button")
    click(teach.plan.start)
    wait(qtbot, lambda: teach.review.keep.isVisible(), "the review")
    reviewed(studio, teach, brought)
    click(teach.review.keep)
    assert [entry.name for entry in studio.document.entries] == ["Squares"]


def test_by_keys(studio, brought, qtbot):
    teach = studio.panel("teach")
    key(studio.window, Qt.Key.Key_2, Qt.KeyboardModifier.ControlModifier)
    dialog = InFileDialog(brought, "keys")
    to(teach.data.folder_button if brought.is_dir() else teach.data.choose_button, Qt.Key.Key_Space)
    assert dialog.answered and teach.draft.draft.data == str(brought)
    wait(qtbot, lambda: teach.draft.report, "the sentence on the data")
    assert "40" in teach.data.sentence.text()
    to(teach.next, Qt.Key.Key_Space)
    to(teach.next, Qt.Key.Key_Space)       # the only model is chosen already
    to(teach.plan.name)
    QTest.keyClicks(teach.plan.name, "Squares")
    to(teach.plan.cards["balanced"], Qt.Key.Key_Up)
    wait(qtbot, teach.plan.start.isEnabled, "the start button")
    to(teach.plan.start, Qt.Key.Key_Space)
    wait(qtbot, lambda: teach.review.keep.isVisible(), "the review")
    reviewed(studio, teach, brought)
    to(teach.review.keep, Qt.Key.Key_Space)
    assert [entry.name for entry in studio.document.entries] == ["Squares"]


def reviewed(studio, teach, brought) -> None:
    """The adapter is in the library, taught from what was brought, and its review stands in its recipe."""
    job = teach.train.job
    assert job.state is State.FINISHED, job.error
    assert job.result["error_after"] < job.result["error_before"]
    adapter = read_adapter(studio.home.adapters / "Squares")
    assert adapter.fingerprint == job.result["fingerprint"] and brought.exists()
