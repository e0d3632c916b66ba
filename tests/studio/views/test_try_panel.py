"""Try: two columns from the same question and seed, strengths heard while speaking, stamps from the engine."""

import json

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QFileDialog, QPushButton

from engine import events, specs
from engine.errors import WrongBase
from studio.core.corrections import ENOUGH, Corrections
from studio.core.stack_commands import AddAdapter, SetEnabled, SetStrength
from studio.core.stack_document import StackDocument
from studio.core.trial import Trial
from studio.views.a11y import unnamed
from studio.views.try_panel import TryPanel
from tests.studio.kit import speak, words_of


@pytest.fixture
def talk(stocked, qtbot):
    stocked.undo.push(AddAdapter(stocked.shop, "Shop answers", base=stocked.base))
    stocked.undo.push(AddAdapter(stocked.keeper, "Lighthouse keeper", strength=0.5))
    panel = TryPanel(stocked.document, stocked.talk_bridge, stocked.catalogue, stocked.undo, stocked.home)
    qtbot.addWidget(panel)
    panel.resize(900, 700)
    panel.show()
    panel._open()
    stocked.settle()
    return panel


def ask(panel, world, question="What does a rye loaf cost?"):
    panel.question.setPlainText(question)
    QTest.keyClick(panel.question, Qt.Key.Key_Return)
    for _ in range(3):
        world.settle()


def test_it_opens_by_itself_and_again_when_the_stack_changes(talk, stocked):
    assert [len(r.stack) for r in stocked.talk.of(specs.OpenChat)] == [2] and talk._ready
    stocked.undo.undo()
    assert not talk._ready
    talk._open()
    stocked.settle()
    assert [len(r.stack) for r in stocked.talk.of(specs.OpenChat)] == [2, 1] and talk._ready


def test_nothing_is_opened_while_nobody_looks(stocked, qtbot):
    panel = TryPanel(stocked.document, stocked.talk_bridge, stocked.catalogue, stocked.undo, stocked.home)
    qtbot.addWidget(panel)
    stocked.undo.push(AddAdapter(stocked.shop, "Shop answers", base=stocked.base))
    panel._open()
    assert stocked.talk.of(specs.OpenChat) == []


def test_both_columns_answer_with_one_seed_and_the_engines_stamp(talk, stocked):
    ask(talk, stocked)
    first, second = stocked.talk.of(specs.Say)
    assert (first.columns, second.columns) == (["stack"], ["base"]) and first.messages == second.messages and first.seed == second.seed
    answers = talk.turns[0].answers
    assert "fedcba98" in answers["stack"]._stamp.text() and "no adapter" in answers["base"]._stamp.text()
    assert "text-decoration:underline" in answers["stack"]._text.text() and "$5.40" in answers["stack"]._text.text()
    ask(talk, stocked, "And two?")
    third, fourth = stocked.talk.of(specs.Say)[2:]
    assert third.messages[1]["content"].startswith("A rye loaf costs $5.40")
    assert fourth.messages[1]["content"].startswith("A rye loaf costs about")


def test_what_a_model_says_is_never_markup(talk, stocked):
    bad = "<b>A rye loaf costs</b> $5.40, friend."
    stocked.talk.answers["say"] = lambda r: [events.Answered(r.columns[0],
                                                             bad if r.columns == ["stack"] else "<b>A rye loaf costs</b> more.", 3, 0.1,
                                                             "x"), None]
    ask(talk, stocked)
    assert "&lt;b&gt;" in talk.turns[0].answers["stack"]._text.text() and "<b>" not in talk.turns[0].answers["stack"]._text.text()


def test_a_slider_is_one_number_heard_while_it_speaks_and_one_step_to_undo(talk, stocked):
    stocked.talk.hold.add("say")
    ask(talk, stocked)
    stocked.talk.emit(0, events.Token("stack", "A rye"))
    stocked.settle()
    assert talk.speaking and talk.turns[0].answers["stack"].said == "A rye" and talk.stop.isVisible()
    row = list(talk.strip.rows.values())[0]
    for value in (90, 70, 40):
        row.slider.setValue(value)
    talk._send_strengths()
    assert stocked.talk.of(specs.SetStrengths)[-1].strengths == [0.4, 0.5] and talk._ready
    assert len(stocked.talk.of(specs.OpenChat)) == 1
    stocked.undo.undo()
    assert stocked.document.entries[0].strength == 1.0 and row.slider.value() == 100
    stocked.undo.push(SetEnabled(stocked.document.entries[1].id, False))
    talk._send_strengths()
    assert stocked.talk.of(specs.SetStrengths)[-1].strengths == [1.0, 0.0]
    QTest.keyClick(talk, Qt.Key.Key_Escape)
    talk.stop_speaking()
    assert len(set(stocked.talk.stopped)) == 2
    stocked.talk.release()
    stocked.settle()
    assert not talk.speaking and talk.send.isVisible()


def test_a_question_asked_too_early_waits_for_the_model(stocked, qtbot):
    stocked.undo.push(AddAdapter(stocked.shop, "Shop answers", base=stocked.base))
    stocked.talk.hold.add("open-chat")
    panel = TryPanel(stocked.document, stocked.talk_bridge, stocked.catalogue, stocked.undo, stocked.home)
    qtbot.addWidget(panel)
    panel.show()
    ask(panel, stocked)
    assert stocked.talk.of(specs.Say) == [] and "Loading" in panel._state.text()
    stocked.talk.release()
    for _ in range(3):
        stocked.settle()
    assert len(panel.turns) == 1 and panel.turns[0].answers["base"].stamp is not None


def test_what_cannot_be_opened_says_why_and_gives_the_question_back(stocked, qtbot):
    stocked.undo.push(AddAdapter(stocked.shop, "Shop answers", base=stocked.base))
    stocked.talk.answers["open-chat"] = lambda _: WrongBase("This adapter was made for another model.", "", "Choose its model.")
    panel = TryPanel(stocked.document, stocked.talk_bridge, stocked.catalogue, stocked.undo, stocked.home)
    qtbot.addWidget(panel)
    panel.show()
    ask(panel, stocked, "Hello?")
    assert stocked.talk.of(specs.Say) == [] and panel.question.toPlainText() == "Hello?"
    assert panel._trouble.count() == 1 and "another model" in panel._trouble.itemAt(0).widget().accessibleName()


def test_without_comparison_only_the_stack_answers(talk, stocked):
    talk.beside.compare.click()
    ask(talk, stocked)
    assert [r.columns for r in stocked.talk.of(specs.Say)] == [["stack"]]
    talk.again.click()
    for _ in range(2):
        stocked.settle()
    assert len(talk.turns) == 2 and stocked.talk.of(specs.Say)[-1].messages == stocked.talk.of(specs.Say)[0].messages
    talk.clear.click()
    assert talk.turns == [] and not talk.again.isEnabled()


def test_shift_enter_is_a_new_line(talk, stocked):
    talk.question.setPlainText("one")
    talk.question.moveCursor(talk.question.textCursor().MoveOperation.End)
    QTest.keyClick(talk.question, Qt.Key.Key_Return, Qt.KeyboardModifier.ShiftModifier)
    QTest.keyClicks(talk.question, "two")
    assert stocked.talk.of(specs.Say) == [] and talk.question.toPlainText() == "one\ntwo"


def put_right(panel, world, number, better):
    ask(panel, world, f"What does item {number} cost?")
    answer = panel.turns[-1].answers["stack"]
    answer.correct.click()
    answer.editor.box.setPlainText(better)
    answer.editor.keep.click()


def test_an_answer_put_right_becomes_an_example_of_the_skill(talk, stocked):
    put_right(talk, stocked, 1, "It costs one euro.")
    ask(talk, stocked, "And two?")
    assert stocked.talk.of(specs.Say)[-1].messages[1]["content"] != "" and "put right" in words_of(talk)
    kept = Corrections(stocked.home, "Shop answers")
    row, = [json.loads(line) for line in kept.path.read_text(encoding="utf-8").splitlines()]
    assert row["messages"] == [{"role": "user", "content": "What does item 1 cost?"}, {"role": "assistant", "content": "It costs one euro."}]
    assert stocked.talk.of(specs.Say)[-2].messages[1]["content"] == "It costs one euro."       # the chat goes on from it


def test_twenty_answers_put_right_offer_to_teach_them(talk, stocked, qtbot):
    kept = Corrections(stocked.home, "Shop answers")
    for number in range(ENOUGH - 1):
        kept.keep([{"role": "user", "content": f"{number}"}, {"role": "assistant", "content": "yes"}])
    put_right(talk, stocked, 99, "It costs nothing.")
    wanted, = [b for b in talk.findChildren(QPushButton) if "Teach these" in b.text()]
    with qtbot.waitSignal(talk.teach_wanted) as heard:
        wanted.click()
    assert heard.args == [kept.path] and len(kept) == ENOUGH


def test_leaving_it_changes_nothing(talk, stocked):
    ask(talk, stocked)
    answer = talk.turns[0].answers["stack"]
    said = answer.said
    answer.correct.click()
    answer.editor.box.setPlainText("Something else.")
    QTest.keyClick(answer.editor.box, Qt.Key.Key_Escape)
    assert answer.said == said and answer.editor is None and not Corrections(stocked.home, "Shop answers").path.exists()


def test_up_to_four_columns_answer_side_by_side_each_with_its_strengths(talk, stocked, qtbot):
    """What was kept is asked for with its own strengths, whatever the sliders say later; narrow windows stack the answers."""
    entry = stocked.document.entries[0]
    for strength in (0.25, 0.5):
        stocked.undo.push(SetStrength(entry.id, strength))
        talk.beside.keep.click()
    stocked.undo.push(SetStrength(entry.id, 1.0))
    assert not talk.beside.keep.isVisibleTo(talk) and "25 %" in words_of(talk)
    ask(talk, stocked)
    asked = stocked.talk.of(specs.Say)
    assert [r.columns for r in asked] == [["stack"], ["a"], ["b"], ["base"]] and [r.strengths for r in asked] == [[], [0.25, 0.5], [0.5, 0.5], []]
    turn = talk.turns[0]
    talk.resize(1400, 700)
    QApplication.processEvents()
    assert turn._side_by_side == 4 and not unnamed(talk)
    talk.resize(760, 700)
    QApplication.processEvents()
    assert turn._side_by_side in (1, 2) and all(answer.width() >= 150 for answer in turn.answers.values())
    talk.beside.unkeep("a")
    ask(talk, stocked, "Again?")
    assert [r.columns for r in stocked.talk.of(specs.Say)[4:]] == [["stack"], ["b"], ["base"]] and talk.beside.keep.isVisibleTo(talk)


def test_where_both_have_no_room_the_stack_folds_away_above_the_chat(talk):
    assert talk.beside.isVisible() and not talk.side.head.isVisible() and talk.side.x() > talk.scroll.width()
    talk.resize(talk.minimumSizeHint().width(), 700)
    QApplication.processEvents()
    assert not talk.beside.isVisible()
    QTest.mouseClick(talk.side.head, Qt.MouseButton.LeftButton)
    QApplication.processEvents()
    assert talk.beside.isVisible() and talk.scroll.isVisible() and talk.side.geometry().bottom() < talk.scroll.parent().y()
    talk.resize(900, 700)
    QApplication.processEvents()
    assert talk.beside.isVisible() and not talk.side.head.isVisible()


def test_what_was_kept_is_there_again_in_the_next_session(talk, stocked, qtbot):
    """With the stack's own file: kept strengths, the exported model, how votes went; damaged parts of it are left out."""
    talk.beside.keep.click()
    talk.beside.vote("stack")
    later = StackDocument()
    later.load_json(stocked.document.to_json())
    assert later.trial == stocked.document.trial and later.trial.kept["a"] == {e.id: e.strength for e in later.entries}
    panel = TryPanel(later, stocked.talk_bridge, stocked.catalogue, stocked.undo, stocked.home)
    qtbot.addWidget(panel)
    assert panel.beside.columns() == ["stack", "a", "base"] and "Chosen blind: With your stack: 1" in panel.beside._votes.text()
    data = json.loads(stocked.document.to_json())
    data["trial"] = {"kept": {"a": {"x": 1, "2": "loud"}, "z": {}}, "votes": {"stack": -3, "b": 2}, "model": 7}
    later.load_json(json.dumps(data))
    assert later.trial == Trial(votes={"b": 2})
    stocked.undo.undo()
    assert stocked.document.trial.votes == {}          # they were for another stack


def test_blind_nothing_tells_who_speaks_until_one_is_chosen(talk, stocked, qtbot):
    talk._shuffle = lambda columns: columns.reverse()
    talk.beside.blind.click()
    stocked.talk.hold.add("say")
    ask(talk, stocked)
    assert [r.columns for r in stocked.talk.of(specs.Say)] == [["base"], ["stack"]]
    stocked.talk.release()
    for _ in range(3):
        stocked.settle()
    turn = talk.turns[0]
    said = words_of(turn)
    assert "Answer 1" in said and "Answer 2" in said and "Which one is best?" in said
    assert not any(word in said for word in ("stack", "untaught", "fedcba98", "tokens", "Put it right", "underline"))
    assert {a.property("look") for a in turn.answers.values()} == {turn.answers["base"].property("look")} and not unnamed(talk)
    first, second, neither = turn.votes.values()
    second.setFocus()
    qtbot.keyClick(second, Qt.Key.Key_Space)
    said = words_of(turn)
    assert "With your stack · ✓ your choice" in said and "fedcba98" in said and "Which one is best?" not in said and "underline" in said
    assert talk.question.hasFocus() or not talk.isActiveWindow()
    ask(talk, stocked, "And two?")
    stocked.talk.release()
    for _ in range(3):
        stocked.settle()
    talk.turns[1].votes["same"].click()
    assert stocked.document.trial.votes == {"stack": 1, "same": 1}
    assert "With your stack: 1 · No difference: 1" in words_of(talk.beside)
    talk.beside.anew.click()
    assert stocked.document.trial.votes == {} and not talk.beside._votes.isVisibleTo(talk)


def test_blind_with_only_one_answer_left_reveals_it(talk, stocked):
    talk.beside.blind.click()
    stocked.talk.answers["say"] = lambda r: speak(r) if r.columns == ["stack"] else WrongBase("It broke.")
    ask(talk, stocked)
    assert not talk.turns[0].votes and "With your stack" in words_of(talk.turns[0])


def test_an_exported_model_answers_in_a_column_of_its_own(talk, stocked, monkeypatch, tmp_path):
    exported = stocked.home.exports / "Shop, baked"
    exported.mkdir(parents=True)
    (exported / "config.json").write_text("{}")
    answers = iter(["", str(tmp_path), str(exported)])
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: next(answers))
    box, told = talk.beside.models, []
    talk.said.connect(told.append)
    for model in ("", "", str(exported)):              # thought better of it; no model; the right one
        box.setCurrentIndex(box.count() - 1)
        box.activated.emit(box.count() - 1)
        assert stocked.document.trial.model == model
    assert told == [f"{tmp_path.name} is no model folder."] and box.currentText() == "Shop, baked"
    ask(talk, stocked)
    assert stocked.talk.of(specs.OpenChat)[-1].beside == str(exported)
    for _ in range(3):
        stocked.settle()
    assert [r.columns for r in stocked.talk.of(specs.Say)] == [["stack"], ["file"], ["base"]] and "exported model abcdef01" in words_of(talk)
    box.setCurrentIndex(0)
    box.activated.emit(0)
    talk._open()
    assert stocked.talk.of(specs.OpenChat)[-1].beside == "" and talk.beside.columns() == ["stack", "base"]


def test_there_are_never_more_than_four_columns(talk, stocked):
    for _ in range(2):
        talk.beside.keep.click()
    assert len(talk.beside.columns()) == 4 and not talk.beside.models.isEnabled() and "Four" in talk.beside.models.toolTip()
    talk.beside.compare.click()
    assert talk.beside.models.isEnabled() and talk.beside.compare.isEnabled()


def test_of_a_question_that_is_asked_again_only_the_last_answer_counts(talk, stocked):
    ask(talk, stocked)
    for _ in range(2):
        talk.again.click()
        for _ in range(3):
            stocked.settle()
    assert [len(request.messages) for request in stocked.talk.of(specs.Say)] == [1] * 6
    ask(talk, stocked, "And two?")
    assert [m["content"] for m in stocked.talk.of(specs.Say)[-1].messages if m["role"] == "user"] == ["What does a rye loaf cost?", "And two?"]


def test_a_new_chat_in_the_middle_of_an_answer_is_ready_at_once(talk, stocked):
    said = talk._state.text()
    stocked.talk.hold.add("say")
    ask(talk, stocked)
    assert talk.speaking and talk._state.text() != said
    talk.new_chat()
    assert not talk.speaking and talk._state.text() == said and talk.send.isEnabled()


def test_a_question_that_waits_goes_back_into_its_box_when_the_chat_begins_anew(talk, stocked):
    ask(talk, stocked)
    stocked.talk.hold.add("open-chat")
    stocked.undo.undo()
    talk.question.setPlainText("And two?")
    talk.ask()
    talk.new_chat()
    assert talk.question.toPlainText() == "And two?"
    stocked.talk.release()
    for _ in range(3):
        stocked.settle()
    assert not talk.turns
