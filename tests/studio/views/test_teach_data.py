"""Teach, Data: problems are mended and mended back by a click, columns change their meaning, a folder is taken like a file."""

import pytest
from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDragEnterEvent, QDropEvent
from PySide6.QtWidgets import QApplication

from engine import specs
from engine.errors import BadData
from studio.core import text
from studio.core.text import teach as words
from studio.views.teach_panel import TeachPanel
from tests.studio.kit import words_of


@pytest.fixture
def teach(stocked, qtbot):
    panel = TeachPanel(stocked.home, stocked.catalogue, stocked.queue_bridge, stocked.talk_bridge, stocked.settings)
    qtbot.addWidget(panel)
    panel.resize(900, 760)
    panel.show()
    return panel


def take(teach, stocked, path):
    teach.use_file(path)
    for _ in range(3):
        stocked.settle()


def rules(teach):
    return [rule for rule, _ in teach.data.problems.fixes]


def test_a_problem_is_mended_by_one_click_and_the_change_can_be_undone(teach, stocked, tmp_path):
    take(teach, stocked, tmp_path / "a.csv")
    problems = teach.data.problems
    assert rules(teach) == ["duplicate", "personal-mail"] and not problems.undo.isEnabled()
    assert "3 examples are there more than once" in words_of(teach.data) and "[e-mail]" in words_of(teach.data)
    expected = [["personal-mail"], [], ["personal-mail"], ["duplicate", "personal-mail"], ["personal-mail"]]
    for press, left in zip((lambda: problems.fixes["duplicate", "keep-one"], lambda: problems.fixes["personal-mail", "mask"],
                            lambda: problems.undo, lambda: problems.undo, lambda: problems.redo), expected):
        press().click()
        for _ in range(3):
            stocked.settle()
        assert rules(teach) == left
        asked = [stocked.talk.of(kind)[-1].edits for kind in (specs.DescribeData, specs.LintData)]
        assert asked[0] == asked[1] == teach.draft.edits
    teach.draft.put(base=str(stocked.base), name="Shop")
    assert teach.draft.spec().edits == [specs.Edit("keep-one")] and problems.redo.isEnabled()


def test_other_examples_begin_without_changes(teach, stocked, tmp_path):
    take(teach, stocked, tmp_path / "a.csv")
    teach.data.problems.fixes["duplicate", "keep-one"].click()
    take(teach, stocked, tmp_path / "b.csv")
    assert teach.draft.edits == [] and teach.draft.draft.roles == {} and not teach.data.problems.undo.isEnabled()


def test_a_column_changes_its_meaning_and_the_other_takes_its_place(teach, stocked, tmp_path):
    take(teach, stocked, tmp_path / "a.csv")
    box = teach.data.roles["question"]
    box.setCurrentIndex(box.findData("answer"))
    box.activated.emit(box.currentIndex())
    stocked.settle()
    assert teach.draft.draft.roles == {"question": "answer", "answer": "question"} == stocked.talk.of(specs.DescribeData)[-1].roles
    assert teach.data.roles["answer"].currentData() == "question"


def test_a_meaning_that_does_not_work_is_told_and_taken_back(teach, stocked, tmp_path):
    usual = stocked.talk.answers["describe-data"]
    stocked.talk.answers["describe-data"] = lambda r: BadData("Nothing is an answer.", do="Choose one.") if r.roles else usual(r)
    told = []
    teach.data.failed.connect(told.append)
    take(teach, stocked, tmp_path / "a.csv")
    box = teach.data.roles["answer"]
    box.setCurrentIndex(box.findData("ignore"))
    box.activated.emit(box.currentIndex())
    for _ in range(3):
        stocked.settle()
    assert told[0].what == "Nothing is an answer." and teach.draft.draft.roles == {} and teach.data.roles["answer"].currentData() == "answer"


def test_very_many_examples_are_looked_at_when_it_is_asked_for(teach, stocked, tmp_path):
    usual = stocked.talk.answers["describe-data"]
    stocked.talk.answers["describe-data"] = lambda r: specs.DataReport.from_dict(usual(r).to_dict() | {"rows": 1_000_000})
    take(teach, stocked, tmp_path / "a.csv")
    assert stocked.talk.of(specs.LintData) == [] and "1,000,000" in teach.data.problems._status.text()
    teach.data.problems.check.click()
    assert len(stocked.talk.of(specs.LintData)) == 1


def test_a_folder_is_dropped_like_a_file(teach, stocked, tmp_path):
    drop = QMimeData()
    drop.setUrls([QUrl.fromLocalFile(str(tmp_path))])
    QApplication.sendEvent(teach.data, QDragEnterEvent(QPoint(50, 50), Qt.DropAction.CopyAction, drop, Qt.MouseButton.LeftButton,
                                                       Qt.KeyboardModifier.NoModifier))
    QApplication.sendEvent(teach.data, QDropEvent(QPointF(50, 50), Qt.DropAction.CopyAction, drop, Qt.MouseButton.LeftButton,
                                                  Qt.KeyboardModifier.NoModifier))
    stocked.settle()
    assert teach.draft.draft.data == str(tmp_path)


def test_every_problem_and_every_fix_has_its_words_in_both_languages():
    from tests.studio.core.test_text import phrases

    english = set(phrases())
    try:
        for language in ("en", "de"):
            text.use(language)
            for rule in words.PROBLEMS:
                assert "2 " in words.problem(rule, 2, {"limit": 9, "marks": "</s>", "usual": "en", "reason": "x", "longest": 8})
    finally:
        text.use("en")
    assert all(counted.one in english for counted in words.PROBLEMS.values())
