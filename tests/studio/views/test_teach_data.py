"""Teach, Data: problems are mended and mended back by a click, columns change their meaning, a folder is taken like a file."""

from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDragEnterEvent, QDropEvent
from PySide6.QtWidgets import QApplication, QFileDialog

from engine import events, specs
from engine.errors import BadData
from studio.core import text
from studio.core.text import teach as words
from studio.models.examples_model import HELD, KEPT, MESSAGES
from studio.views.a11y import unnamed
from tests.studio.kit import words_of


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
    box = teach.data.columns.boxes["question"]
    box.setCurrentIndex(box.findData("answer"))
    box.activated.emit(box.currentIndex())
    stocked.settle()
    assert teach.draft.draft.roles == {"question": "answer", "answer": "question"} == stocked.talk.of(specs.DescribeData)[-1].roles
    assert teach.data.columns.boxes["answer"].currentData() == "question"


def test_a_meaning_that_does_not_work_is_told_and_taken_back(teach, stocked, tmp_path):
    usual = stocked.talk.answers["describe-data"]
    stocked.talk.answers["describe-data"] = lambda r: BadData("Nothing is an answer.", do="Choose one.") if r.roles else usual(r)
    told = []
    teach.data.failed.connect(told.append)
    take(teach, stocked, tmp_path / "a.csv")
    box = teach.data.columns.boxes["answer"]
    box.setCurrentIndex(box.findData("ignore"))
    box.activated.emit(box.currentIndex())
    for _ in range(3):
        stocked.settle()
    assert told[0].what == "Nothing is an answer." and teach.draft.draft.roles == {} and teach.data.columns.boxes["answer"].currentData() == "answer"


def test_of_columns_that_are_not_understood_a_person_says_what_they_are(teach, stocked, tmp_path, qtbot):
    """By keys; what makes no examples cannot be chosen, and what was said stays there if the file is no better for it."""
    usual = stocked.talk.answers["describe-data"]
    problem = BadData("The columns are not understood.", columns=["Spalte A", "Spalte B"], samples=[["Wann offen?", "Um sieben."], ["Wo?", ""]])
    stocked.talk.answers["describe-data"] = lambda r: usual(r) if r.roles.get("Spalte A") == "question" else problem
    take(teach, stocked, tmp_path / "a.csv")
    ask = teach.data.ask
    assert "Wann offen? · Wo?" in ask.boxes["Spalte A"].accessibleDescription() and not ask.use.isEnabled() and not unnamed(teach)
    for column, role in (("Spalte A", "answer"), ("Spalte B", "question")):
        ask.boxes[column].setCurrentIndex(ask.boxes[column].findData(role))
    ask.use.click()
    for _ in range(4):
        stocked.settle()
    again = teach.data.ask
    assert again is not ask and again.roles() == {"Spalte A": "answer", "Spalte B": "question"} and teach.draft.draft.roles == {}
    for column, role in (("Spalte A", "question"), ("Spalte B", "answer")):
        again.boxes[column].setCurrentIndex(again.boxes[column].findData(role))
    again.use.setFocus()
    qtbot.keyClick(again.use, Qt.Key.Key_Space)
    for _ in range(3):
        stocked.settle()
    assert teach.draft.report is not None and teach.draft.draft.roles == {"Spalte A": "question", "Spalte B": "answer"}


def million(stocked, **more):
    usual = stocked.talk.answers["describe-data"]
    stocked.talk.answers["describe-data"] = lambda r: specs.DataReport.from_dict(usual(r).to_dict() | {"rows": 1_000_000} | more)


def test_very_many_examples_are_looked_at_in_the_background(teach, stocked, tmp_path):
    """It says how far it is, can be stopped and begun again, and the window goes on meanwhile."""
    million(stocked)
    stocked.talk.hold.add("lint-data")
    take(teach, stocked, tmp_path / "a.csv")
    problems = teach.data.problems
    problems.fold.open()
    assert "1,000,000" in problems._status.text() and problems.stop.isVisibleTo(teach)
    stocked.talk.emit(0, events.Progress("Looking at every example", 250_000, 1_000_000, "rows"))
    stocked.settle()
    assert problems.bar.value() == 250 and "250,000 of 1,000,000" in problems._status.text()
    problems.stop.click()
    assert stocked.talk.stopped and not problems.bar.isVisibleTo(teach) and problems.check.isVisibleTo(teach)
    problems.check.click()
    assert len(stocked.talk.of(specs.LintData)) == 2
    stocked.talk.release()
    stocked.settle()
    assert rules(teach) == ["duplicate", "personal-mail"] and not problems.stop.isVisibleTo(teach)


def test_any_of_a_million_examples_is_found_and_only_what_is_seen_is_fetched(teach, stocked, tmp_path, qtbot):
    million(stocked)
    take(teach, stocked, tmp_path / "a.csv")
    model = teach.data.model
    assert model.rowCount() == 1_000_000
    teach.data.number.setValue(777_778)
    wait = lambda row: qtbot.waitUntil(lambda: stocked.settle() or model.data(model.index(row, 0), MESSAGES) is not None, timeout=5000)   # noqa: E731
    wait(777_777)
    assert model.data(model.index(777_777, 0), MESSAGES)[0]["content"] == "What does item 777778 cost?" and teach.data._row == 777_777
    assert model.data(model.index(777_779, 0), HELD) and "Example 777,778: Question:" in model.data(model.index(777_777, 0),
                                                                                               Qt.ItemDataRole.AccessibleTextRole)
    for row in range(0, 1_000_000, 25_000):
        teach.data.list.go(row)
        wait(row)
    assert len(model._pages) <= KEPT and len(stocked.talk.of(specs.ShowRows)) < 150
    teach.data.list.setFocus()
    qtbot.keyClick(teach.data.list, Qt.Key.Key_Down)
    assert teach.data._row == 975_001 and teach.data.number.value() == 975_002


def test_a_page_that_cannot_be_read_is_told_once(teach, stocked, tmp_path, qtbot):
    million(stocked)
    stocked.talk.answers["show-rows"] = lambda r: BadData("The file is gone.", do="Choose it again.")
    told = []
    teach.data.failed.connect(told.append)
    take(teach, stocked, tmp_path / "a.csv")
    qtbot.waitUntil(lambda: stocked.settle() or bool(told), timeout=5000)
    teach.data.list.viewport().repaint()
    stocked.settle()
    assert [error.what for error in told] == ["The file is gone."]


def test_a_problem_leads_to_its_examples_one_after_the_other(teach, stocked, tmp_path):
    take(teach, stocked, tmp_path / "a.csv")
    for row in (4, 5, 9, 4):
        teach.data.problems.shows["duplicate"].click()
        assert teach.data._row == row


def test_many_columns_each_have_their_meaning_over_them_and_scroll(teach, stocked, tmp_path):
    names = [f"Column {n}" for n in range(1, 31)]
    million(stocked, rows=9, columns=names, choices=dict.fromkeys(names, ["question", "answer", "ignore"]),
            roles={"Column 20": "question", "Column 21": "answer"})
    take(teach, stocked, tmp_path / "a.csv")
    columns = teach.data.columns
    assert list(columns.boxes) == names and columns.boxes["Column 21"].currentData() == "answer"
    QApplication.processEvents()
    assert columns.horizontalScrollBar().maximum() > 0 and columns.horizontalScrollBar().value() > 0      # the question is in sight
    columns.boxes["Column 1"].setFocus()
    columns.boxes["Column 1"].activated.emit(columns.boxes["Column 1"].findData("answer"))
    assert set(teach.draft.draft.roles) == set(names)


def counting(teach, stocked, path):
    """A long file whose head is there and whose rest is being counted."""
    usual = stocked.talk.answers["describe-data"]
    rows = lambda r: r.head or 1_000_000   # noqa: E731
    stocked.talk.answers["describe-data"] = lambda r: specs.DataReport.from_dict(
        usual(r).to_dict() | {"rows": rows(r), "held_out": 0 if r.head else 200, "whole": not r.head, "sentence": f"{rows(r):,} texts."})
    teach.use_file(path)
    stocked.talk.hold.add("describe-data")     # from the second question on, which has no end yet
    stocked.settle()


def test_of_a_long_file_the_first_rows_are_there_at_once_and_the_rest_is_counted(teach, stocked, tmp_path, qtbot):
    counting(teach, stocked, tmp_path / "a.csv")
    data = teach.data
    assert data.model.rowCount() == 1000 and "So far 1,000 texts." in words_of(data) and "of the first 1,000" in words_of(data)
    assert [r.head for r in stocked.talk.of(specs.DescribeData)] == [1000, 0] and not stocked.talk.of(specs.LintData)
    assert teach.draft.report is None and "counted" in teach.draft.missing()["data"]
    data.number.setValue(700)
    qtbot.waitUntil(lambda: stocked.settle() or data.model.data(data.model.index(699, 0), MESSAGES) is not None, timeout=5000)
    assert {r.head for r in stocked.talk.of(specs.ShowRows)} == {1000}
    stocked.talk.emit(0, events.Progress("340,000 texts.", 340_000, 0, "rows"))
    stocked.settle()
    assert "So far 340,000 texts." in words_of(data)
    stocked.talk.hold.clear()
    stocked.talk.release()
    for _ in range(3):
        stocked.settle()
    assert data.model.rowCount() == 1_000_000 and data._row == 699 and "So far" not in words_of(data)
    assert not data._counting.isVisibleTo(teach) and data.problems.isVisibleTo(teach) and "data" not in teach.draft.missing()
    qtbot.waitUntil(lambda: stocked.settle() or data.model.data(data.model.index(699, 0), HELD), timeout=5000)


def test_counting_can_be_stopped_and_begun_again_by_keys(teach, stocked, tmp_path, qtbot):
    counting(teach, stocked, tmp_path / "a.csv")
    data = teach.data
    qtbot.keyClick(data.stop_button, Qt.Key.Key_Space)
    assert len(stocked.talk.stopped) == 1 and data.count_button.isVisibleTo(teach) and not data.stop_button.isVisibleTo(teach)
    assert data.model.rowCount() == 1000 and "data" in teach.draft.missing()
    stocked.talk.hold.clear()
    qtbot.keyClick(data.count_button, Qt.Key.Key_Space)
    stocked.settle()
    assert data.model.rowCount() == 1_000_000


def test_another_meaning_of_the_columns_begins_with_the_head_and_a_change_of_what_is_read_does_not(teach, stocked, tmp_path):
    counting(teach, stocked, tmp_path / "a.csv")
    stocked.talk.hold.clear()
    stocked.talk.release()
    stocked.settle()
    teach.draft.put(edits=[specs.Edit("keep-one").to_dict()])
    stocked.settle()
    teach.draft.put(roles={"question": "answer", "answer": "question"})
    stocked.settle()
    assert [r.head for r in stocked.talk.of(specs.DescribeData)] == [1000, 0, 0, 1000, 0]


def test_a_file_that_is_slow_to_open_says_so(teach, stocked, tmp_path, qtbot):
    stocked.talk.hold.add("describe-data")
    teach.use_file(tmp_path / "slow.csv")
    qtbot.waitUntil(lambda: teach.data._reading.isVisibleTo(teach), timeout=5000)
    assert "Reading slow.csv" in words_of(teach.data)
    stocked.talk.release()
    stocked.settle()
    assert not teach.data._reading.isVisibleTo(teach)


def test_a_folder_is_chosen_by_its_own_button(teach, stocked, tmp_path, monkeypatch, qtbot):
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path))
    teach.data.folder_button.setFocus()
    qtbot.keyClick(teach.data.folder_button, Qt.Key.Key_Space)
    assert teach.draft.draft.data == str(tmp_path) and stocked.settings.recall("teach.folder", "") == str(tmp_path)


def test_a_folder_is_dropped_like_a_file(teach, stocked, tmp_path):
    drop = QMimeData()
    drop.setUrls([QUrl.fromLocalFile(str(tmp_path))])
    QApplication.sendEvent(teach.data, QDragEnterEvent(QPoint(50, 50), Qt.DropAction.CopyAction, drop, Qt.MouseButton.LeftButton,
                                                       Qt.KeyboardModifier.NoModifier))
    QApplication.sendEvent(teach.data, QDropEvent(QPointF(50, 50), Qt.DropAction.CopyAction, drop, Qt.MouseButton.LeftButton,
                                                  Qt.KeyboardModifier.NoModifier))
    stocked.settle()
    assert teach.draft.draft.data == str(tmp_path)


def test_of_several_dropped_files_none_is_taken_in_silence(teach, stocked, tmp_path):
    said, drop = [], QMimeData()
    teach.data.said.connect(said.append)
    drop.setUrls([QUrl.fromLocalFile(str(tmp_path / name)) for name in ("a.csv", "b.csv")])
    QApplication.sendEvent(teach.data, QDragEnterEvent(QPoint(50, 50), Qt.DropAction.CopyAction, drop, Qt.MouseButton.LeftButton,
                                                       Qt.KeyboardModifier.NoModifier))
    QApplication.sendEvent(teach.data, QDropEvent(QPointF(50, 50), Qt.DropAction.CopyAction, drop, Qt.MouseButton.LeftButton,
                                                  Qt.KeyboardModifier.NoModifier))
    assert not teach.draft.draft.data and said == [words.DATA_ONE_ONLY()]


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
