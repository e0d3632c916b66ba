"""Teach: what a person does on the five pages, and what is asked, queued, shown and kept because of it."""

from pathlib import Path

import pytest
from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDragEnterEvent, QDropEvent
from PySide6.QtWidgets import QApplication

from engine import events, specs
from engine.errors import BadData, DiskFull, Diverged
from engine.store.resources import resource
from engine.store.runs import RunFolder
from studio.core.plan import Draft
from studio.jobs.job import State
from studio.views.teach_data import kind_of
from studio.views.teach_panel import TeachPanel
from tests.studio.kit import words_of


def choose_all(teach, world, name="Opening hours"):
    teach.use_file(resource("samples/shop.csv"))
    teach.use_model(world.base)
    world.settle()
    teach.draft.put(name=name, prompts=["Where are you?"])
    teach.show_step("plan")


def test_what_is_missing_is_marked_and_said(teach, stocked):
    assert "○" in teach.steps["data"].text() and teach.steps["data"].toolTip()
    assert "✓" in teach.steps["model"].text()      # the only model is chosen by itself
    teach.show_step("plan")
    assert not teach.plan.start.isEnabled() and "examples" in teach.plan._needs.text()
    choose_all(teach, stocked)
    assert all("✓" in teach.steps[key].text() for key in ("data", "model", "plan")) and teach.plan.start.isEnabled()


def test_a_file_is_described_and_shown_as_the_model_sees_it(teach, stocked):
    drop = QMimeData()
    drop.setUrls([QUrl.fromLocalFile(str(resource("samples/shop.csv")))])
    QApplication.sendEvent(teach.data, QDragEnterEvent(QPoint(50, 50), Qt.DropAction.CopyAction, drop, Qt.MouseButton.LeftButton,
                                                       Qt.KeyboardModifier.NoModifier))
    QApplication.sendEvent(teach.data, QDropEvent(QPointF(50, 50), Qt.DropAction.CopyAction, drop, Qt.MouseButton.LeftButton,
                                                  Qt.KeyboardModifier.NoModifier))
    stocked.settle()
    assert "159 question" in words_of(teach.data) and "more than once" in words_of(teach.data)
    teach.data.list.go(3)
    teach.data._render()
    stocked.settle()
    assert stocked.talk.of(specs.RenderRow)[-1].row == 3
    cursor = teach.data.exact.textCursor()
    text = teach.data.exact.toPlainText()
    for place, learned in ((text.index("What"), False), (text.index("euros"), True)):
        cursor.setPosition(place + 1)
        assert cursor.charFormat().fontUnderline() is learned
    assert "9 of them learned" in teach.data.tokens.text()


def test_a_bad_file_is_a_sentence_that_stays_and_a_better_one_clears_it(teach, stocked, tmp_path):
    good = stocked.talk.answers["describe-data"]
    stocked.talk.answers["describe-data"] = lambda _: BadData("The file is empty.", "It holds no rows.", "Choose another one.")
    teach.use_file(tmp_path / "empty.csv")
    stocked.settle()
    assert "The file is empty." in words_of(teach.data) and "○" in teach.steps["data"].text() and "data" in teach.draft.missing()
    stocked.talk.answers["describe-data"] = good
    teach.use_file(tmp_path / "full.csv")
    stocked.settle()
    assert "The file is empty." not in words_of(teach.data) and "data" not in teach.draft.missing()


def test_what_was_pasted_a_moment_ago_is_there_after_a_restart(teach, stocked):
    written = "written a moment before the end\n" * 10_000
    teach.data.paste.setPlainText(written)
    teach.closing()
    again = TeachPanel(stocked.home, stocked.catalogue, stocked.queue_bridge, stocked.talk_bridge, stocked.settings)
    assert again.data.paste.toPlainText() == written
    again.deleteLater()


def test_what_was_pasted_stays_in_the_box_when_the_disk_is_full(teach, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    told = []
    monkeypatch.setattr("studio.views.teach_data.write_text", full)
    teach.data.failed.connect(told.append)
    teach.data.paste.setPlainText("not kept yet")
    teach.data.keep_paste()
    assert len(told) == 1 and "disk" in str(told[0]).lower() and teach.data.paste.toPlainText() == "not kept yet"


def test_another_share_held_back_is_counted_anew(teach, stocked):
    teach.use_file(stocked.home.root / "shop.csv")
    stocked.settle()
    asked = [request.holdout for request in stocked.talk.of(specs.DescribeData)]
    teach.draft.put(overrides={"holdout": 0.3})
    stocked.settle()
    assert [request.holdout for request in stocked.talk.of(specs.DescribeData)] == [*asked, 0.3]
    teach.draft.put(overrides={"holdout": 0.3, "passes": 2.0})
    assert len(stocked.talk.of(specs.DescribeData)) == len(asked) + 1, "other settings change nothing in it"


def test_pasted_text_becomes_a_file_and_survives_a_restart(teach, stocked, qtbot):
    teach.data.paste_button.click()
    teach.data.paste.setPlainText("question,answer\nA?,B")
    teach.data.use_paste.click()
    stocked.settle()
    path = Path(teach.draft.draft.data)
    assert path.read_text() == "question,answer\nA?,B" and path.suffix == ".csv" and path.is_relative_to(stocked.home.root)
    teach.data._keep_paste.timeout.emit()
    teach.draft.put(name="Half done")
    teach.closing()
    again = TeachPanel(stocked.home, stocked.catalogue, stocked.queue_bridge, stocked.talk_bridge, stocked.settings)
    qtbot.addWidget(again)
    assert again.draft.draft == teach.draft.draft and again.plan.name.text() == "Half done" and "A?,B" in again.data.paste.toPlainText()


@pytest.mark.parametrize("text, kind", [("a,b\n1,2", "csv"), ("a\tb\n1\t2", "tsv"), ('{"a": 1}\n{"a": 2}', "jsonl"),
                                        ('[{"a": 1}]', "json"), ("Hello there", "txt"),
                                        ('{\n "a": 1\n}', "json"), ("Frage;Antwort\nA;B", "csv"), ('"What, then?","So, so"', "csv"),
                                        ("Wann öffnen Sie?;Um sieben.", "csv"), ("Hello, my friend; what now?", "txt"),
                                        ("Q: Hi, when?\nA: At 7,30", "txt"),
                                        ("12.03.24, 10:00 - Anna: ja,nein", "txt"), ("[12.03.24, 10:00:12] Anna: Hi ;-)", "txt")])
def test_the_kind_of_what_is_pasted(text, kind):
    assert kind_of(text) == kind


def test_questions_to_pin_come_from_the_examples_and_go_with_them_unless_somebody_wrote_them(teach, stocked, tmp_path):
    usual = stocked.talk.answers["describe-data"]
    stocked.talk.answers["describe-data"] = lambda r: specs.DataReport.from_dict(usual(r).to_dict() | {"asks": [f"What is in {Path(r.data).name}?"]})

    def take(name):
        teach.use_file(tmp_path / name)
        stocked.settle()
        return teach.plan.prompts.toPlainText()
    assert take("a.csv") == "What is in a.csv?" and take("b.csv") == "What is in b.csv?"
    teach.plan.prompts.setPlainText("")    # not wanted: they do not come back
    teach.draft.put(roles={"question": "question"})
    stocked.settle()
    assert teach.draft.draft.prompts == [] and take("c.csv") == "What is in c.csv?"
    teach.plan.prompts.setPlainText("Mine?")
    assert take("d.csv") == "Mine?"


def test_a_pinned_question_changes_the_price(teach, stocked):
    choose_all(teach, stocked)
    teach.draft.put(prompts=[])
    teach.plan._ask_prices()
    stocked.settle()
    before = len(stocked.talk.of(specs.EstimatePlan))
    teach.plan.prompts.setPlainText("Why?\n\nWhen?\n")
    assert teach.plan._later.isActive() and "measuring" in teach.plan.price_labels["balanced"].text()
    teach.plan._ask_prices()
    assert [request.plan.prompts for request in stocked.talk.of(specs.EstimatePlan)[before:]] == [["?", "?"]] * 3


def test_each_preset_shows_its_price_and_a_change_asks_again(teach, stocked):
    stocked.talk.hold.add("estimate-plan")
    choose_all(teach, stocked)
    teach.plan._ask_prices()
    assert all("measuring" in label.text() for label in teach.plan.price_labels.values())
    stocked.talk.hold.clear()
    stocked.talk.release()
    stocked.settle()
    assert "3 passes over 143 examples" in teach.plan.price_labels["balanced"].text()
    asked = len(stocked.talk.of(specs.EstimatePlan))
    teach.draft.put(overrides={"rows_per_step": 2})
    teach.plan._ask_prices()
    stocked.settle()
    assert {r.plan.rows_per_step for r in stocked.talk.of(specs.EstimatePlan)[asked:]} == {2}


def test_advanced_settings_reach_the_job_and_faults_keep_it_back(teach, stocked):
    choose_all(teach, stocked)
    teach.plan.advanced.open()
    stocked.settle()
    field = teach.plan.form.fields["rows_per_step"]
    field.editor.setText("0")
    field.editor.textEdited.emit("0")
    assert not teach.plan.start.isEnabled() and "At least 1" in field.fault()
    field.editor.setText("3")
    field.editor.textEdited.emit("3")
    rank = teach.plan._method_form.fields["r"]
    rank.editor.setText("12")
    rank.editor.textEdited.emit("12")
    assert "2 settings differ" in teach.plan.advanced.head.text()
    teach.plan.start.click()
    spec = stocked.queue.jobs()[0].spec
    assert (spec.rows_per_step, spec.method_config["r"], spec.method_config["lora_alpha"], spec.prompts) == (3, 12, 32, ["Where are you?"])
    teach.show_step("plan")
    teach.plan.reset.click()
    assert teach.draft.draft.overrides == {} and teach.draft.draft.method_overrides == {} and rank.value() == 16


def test_a_training_is_followed_to_its_review_and_kept(teach, stocked, qtbot):
    choose_all(teach, stocked)
    teach.plan.start.click()
    assert teach.train.isVisible()
    stocked.settle()
    assert "Waiting" in teach.train.verdict.text()
    stocked.start()
    stocked.run_all()
    assert teach.train.curve.points == 40 and teach.train.curve.best()[0] == 20 and teach.review.isVisible()
    assert teach.train.job.state is State.FINISHED and "by heart" in teach.train.verdict.text()
    assert sorted(teach.train.answers) == [0, 10, 20, 30, 40]
    assert "step 20" in teach.train.evidence.text()
    teach.train.evidence.click()
    assert teach.train.curve._pointed == 20
    qtbot.waitUntil(lambda: not teach.review._past.reading and not teach.review._past_rows.reading)    # in bites, on a busy machine
    shown = words_of(teach.review)
    assert "16 %" in shown and "3.20" in shown and "2.68" in shown and "Answer at step 0." in shown and "Answer at step 20." in shown
    with qtbot.waitSignal(teach.kept) as kept:
        teach.review.keep.click()
    assert kept.args == [stocked.home.adapters / "Opening-hours", stocked.base, 1.0]
    teach.review.more.click()
    assert teach.plan.isVisible() and teach.draft.spec().passes == 6.0 and "plan" not in teach.draft.missing()


def test_another_model_is_brought_by_its_name(teach, stocked):
    teach.show_step("model")
    teach.model.name.setText("hello")
    teach.model.bring.click()
    assert "neither a name on the Hub" in words_of(teach.model) and not stocked.queue.jobs()
    teach.model.name.setText("org/Other-1B")
    teach.model.bring.click()
    job, = stocked.queue.jobs()
    assert job.spec == specs.FetchSpec(out=str(stocked.home.models / "Other-1B"), model="org/Other-1B") and "Other-1B" in job.title
    assert "neither" not in words_of(teach.model)


def test_answers_can_be_heard_through_time(teach, stocked):
    choose_all(teach, stocked)
    teach.plan.start.click()
    stocked.start()
    stocked.run_all()
    teach.show_step("train")
    teach.train.slider.setValue(0)
    assert "Answer at step 0." in words_of(teach.train) and "before it learned" in words_of(teach.train)
    teach.train.slider.setValue(4)
    assert "Answer at step 40." in words_of(teach.train)


def test_discard_asks_once_and_deletes(teach, stocked):
    choose_all(teach, stocked)
    teach.plan.start.click()
    stocked.start()
    stocked.run_all()
    folder = stocked.home.adapters / "Opening-hours"
    teach.review.discard.click()
    assert folder.is_dir() and "Really" in teach.review.discard.text()
    teach.review.discard.click()
    assert not folder.exists() and not teach.review.keep.isEnabled() and "no longer" in words_of(teach.review)


def test_a_failure_is_told_where_it_matters_and_nothing_typed_is_lost(teach, stocked):
    def full(spec, run):
        yield events.Progress("Loading the model")
        raise DiskFull("The disk is full.", "No room.", "Free some space.", details="errno 28")
    stocked.work["train"] = full
    choose_all(teach, stocked)
    teach.plan.start.click()
    stocked.start()
    stocked.run_all()
    shown = words_of(teach.train)
    assert "The disk is full." in shown and "Free some space." in shown and "errno 28" not in shown
    assert teach.train.pause.isEnabled() and "Continue" in teach.train.pause.text()
    assert teach.plan.name.text() == "Opening hours" and teach.draft.draft.name == "Opening hours"
    stocked.work["train"] = lambda spec, run: iter([events.Finished({"adapter": spec.out})])
    teach.train.pause.click()
    stocked.run_all()
    assert teach.train.job.state is State.FINISHED


def test_pause_and_stop_are_asked_of_the_queue(teach, stocked, qtbot):
    import threading
    go_on = threading.Event()

    def patient(spec, run):
        yield events.Step(1, 10, 2.0, 1e-4, 10, 10.0, 100.0, 9.0)
        yield events.Saved(1, "c")
        go_on.wait(10)
        yield events.Finished({"adapter": spec.out}) if run.asked("finish") else events.Stopped("pause", True, 1)
    stocked.work["train"] = patient
    choose_all(teach, stocked)
    teach.plan.start.click()
    stocked.start()
    qtbot.waitUntil(lambda: (stocked.settle(), teach.train.curve.points and teach.train.stop.isEnabled())[1], timeout=10_000)
    teach.train._say()
    assert "resumes at step 1" in words_of(teach.train)
    teach.train.stop.click()
    assert "Stopping" in teach.train.verdict.text()
    go_on.set()
    stocked.run_all()
    assert teach.train.job.state is State.FINISHED


def test_time_is_added_by_a_menu_that_names_its_price(teach, stocked, qtbot):
    import threading
    go_on = threading.Event()

    def patient(spec, run):
        yield events.Step(4, 10, 2.0, 1e-4, 10, 10.0, 100.0, 120.0, 2.0)     # two steps a pass, 20 seconds a step
        go_on.wait(10)
        yield events.Stopped("pause", True, 4) if run.asked("pause") else events.Finished({"adapter": spec.out})
    stocked.work["train"] = patient
    choose_all(teach, stocked)
    teach.plan.start.click()
    stocked.start()
    qtbot.waitUntil(lambda: (stocked.settle(), teach.train.curve.points and teach.train.more.isEnabled())[1], timeout=10_000)
    assert teach.train.more.accessibleName() == "Add time" and teach.train.more.focusPolicy() & Qt.FocusPolicy.TabFocus
    teach.train.more.menu().aboutToShow.emit()
    offers = teach.train.more.menu().actions()
    assert [offer.text() for offer in offers] == ["1 pass more – about 40 seconds", "3 passes more – about 2 min"]
    with qtbot.waitSignal(teach.said) as said:
        offers[1].trigger()
    job = teach.train.job
    assert RunFolder(job.folder).extended == 3 and "Added: 3 passes more" in said.args[0]
    teach.train.pause.click()
    go_on.set()
    stocked.run_all()
    assert teach.train.job.state is State.PAUSED and teach.train.more.isEnabled()
    teach.train._offer_time()
    with qtbot.waitSignal(teach.said) as said:
        teach.train.more.menu().actions()[0].trigger()
    assert RunFolder(job.folder).extended == 4 and "as soon as it goes on" in said.args[0]
    assert teach.train.stop.isEnabled()    # what was saved may be kept without going on
    teach.train.pause.click()
    stocked.run_all()
    assert teach.train.job.state is State.FINISHED and not teach.train.more.isEnabled()


def test_a_training_that_ran_away_offers_half_the_speed_and_not_the_same_again(teach, stocked):
    def fragile(spec, run):
        if not run.slowed:
            yield events.Step(8, 10, 2.0, 1e-4, 10, 10.0, 100.0, 9.0)
            raise Diverged("The training ran away at step 9.", "Too fast.", "Go on.", good=6, lines=[])
        yield events.Finished({"adapter": spec.out})
    stocked.work["train"] = fragile
    choose_all(teach, stocked)
    teach.plan.start.click()
    stocked.start()
    stocked.run_all()
    assert "ran away" in words_of(teach.train) and not teach.train.pause.isEnabled() and not teach.train.more.isEnabled()
    assert "from step 6 with half the learning speed" in teach.train.slower.text()
    teach.train.slower.click()
    stocked.run_all()
    assert teach.train.job.state is State.FINISHED and RunFolder(teach.train.job.folder).slowed == 1


def test_where_an_example_is_to_blame_no_lower_speed_is_offered(teach, stocked):
    def poisoned(spec, run):
        yield events.Saved(3, "c")
        raise Diverged("The training ran away.", "Line 12.", "Leave it out.", good=3, lines=[12])
    stocked.work["train"] = poisoned
    choose_all(teach, stocked)
    teach.plan.start.click()
    stocked.start()
    stocked.run_all()
    assert "Leave it out." in words_of(teach.train) and teach.train._mending(Diverged("x", lines=[12])) == []


def test_a_full_disk_interrupts_it_and_says_what_to_do_before_it_goes_on(teach, stocked):
    def full(spec, run):
        yield events.Step(8, 10, 2.0, 1e-4, 10, 10.0, 100.0, 9.0)
        yield events.Saved(8, "c")
        yield events.Note("Memory ran out, so examples are taken in smaller portions.", "warning", 8)
        raise DiskFull("The disk is full.", "No room.", "Free some space.")
    stocked.work["train"] = full
    choose_all(teach, stocked)
    teach.plan.start.click()
    stocked.start()
    stocked.run_all()
    assert teach.train.job.state is State.INTERRUPTED and "resumes at step 8" in teach.train.verdict.text()
    assert "The disk is full. No room. Free some space." in words_of(teach.train) and "Continue" in teach.train.pause.text()
    assert "Memory ran out, so examples are taken in smaller portions." in teach.train.curve._marks[8]
    assert teach.train.curve._loud == {8}, "it is seen beside the marks of what was saved"


def test_the_sample_project_is_ready_to_start(teach, stocked):
    teach.start_sample()
    stocked.settle()
    assert teach.plan.isVisible() and teach.draft.missing() == {} and teach.plan.start.isEnabled() and teach.plan.prompts.toPlainText()


def test_a_model_without_chat_template_cannot_be_chosen(stocked, qtbot):
    from tests.studio.kit import make_model
    make_model(stocked.home, "Plain-Base", 16, template=False)
    stocked.catalogue.refresh()
    panel = TeachPanel(stocked.home, stocked.catalogue, stocked.queue_bridge, stocked.talk_bridge, stocked.settings)
    qtbot.addWidget(panel)
    plain = next(b for b in panel.model._group.buttons() if "Plain-Base" in b.accessibleName())
    assert not plain.isEnabled() and "template" in plain.accessibleDescription()


def test_a_draft_of_an_earlier_day_is_looked_at_when_somebody_comes(stocked, qtbot):
    stocked.settings.remember("teach.draft", Draft(data=str(resource("samples/shop.csv"))).to_dict())
    panel = TeachPanel(stocked.home, stocked.catalogue, stocked.queue_bridge, stocked.talk_bridge, stocked.settings)
    qtbot.addWidget(panel)
    stocked.settle()
    assert stocked.talk.asked == []
    panel.show()
    stocked.settle()
    assert panel.draft.report is not None and len(stocked.talk.of(specs.DescribeData)) == 1


def test_an_unusable_draft_from_earlier_days_is_no_obstacle(stocked, qtbot, tmp_path):
    stocked.settings.remember("teach.draft", Draft(base=str(tmp_path / "gone"), data="", preset="best").to_dict() | {"preset": "thorough",
                                                                                                                     "extra": 1})
    panel = TeachPanel(stocked.home, stocked.catalogue, stocked.queue_bridge, stocked.talk_bridge, stocked.settings)
    qtbot.addWidget(panel)
    assert panel.draft.draft.preset == "balanced" and panel.draft.draft.base == str(stocked.base)
