"""The search for a learning speed on the Plan page: a job, its curve, the field it fills, and the way back."""

import pytest

from engine import events, specs
from engine.errors import BadData
from engine.store.resources import resource
from studio.jobs.job import State
from tests.studio.kit import words_of


@pytest.fixture
def plan(teach):
    teach.show_step("plan")
    teach.plan.advanced.open()
    return teach.plan


@pytest.fixture
def ready(plan, stocked):
    plan._draft.put(data=str(resource("samples/shop.csv")), base=str(stocked.base))
    stocked.settle()
    plan._draft.found(stocked.talk.answers["describe-data"](specs.DescribeData(plan._draft.draft.data)))
    return plan


def test_it_waits_for_examples_and_a_model(plan, stocked):
    plan._draft.put(data="", base=str(stocked.base))
    assert not plan.finder.find.isEnabled() and plan.finder.find.accessibleName() == "Find learning speed"
    plan._draft.put(data=str(resource("samples/shop.csv")))
    assert plan.finder.find.isEnabled(), "a name is not needed"


def test_it_fills_the_field_and_can_be_taken_back(ready, stocked, qtbot):
    ready._draft.put(overrides={"learning_rate": 0.01, "rows_per_step": 4})
    ready.finder.find.click()
    job, = stocked.queue.jobs()
    assert isinstance(job.spec, specs.FindSpeedSpec) and job.spec.plan.rows_per_step == 4 and job.spec.plan.learning_rate == 0
    assert "Waiting" in words_of(ready.finder) and not ready.finder.find.isEnabled() and ready.finder.stop.isVisible()
    with qtbot.waitSignal(ready.said):
        stocked.start()
        stocked.run_all()
    field = ready.form.fields["learning_rate"]
    assert ready._draft.draft.overrides == {"learning_rate": 0.00038, "rows_per_step": 4} and field.value() == 0.00038
    assert ready.finder.curve.points == 54 and "0.00038: a tenth of 0.0038" in words_of(ready.finder)
    assert ready.finder.find.isEnabled() and not ready.finder.stop.isVisible()
    assert ready.finder.swap.text() == "Back to what it was"
    ready.finder.swap.click()
    assert field.value() == 0.01 and ready.finder.swap.text() == "Use this speed"
    ready.finder.swap.click()
    assert field.value() == 0.00038
    ready.finder.swap.click()
    assert ready._draft.draft.overrides == {"learning_rate": 0.01, "rows_per_step": 4}


def test_where_nothing_stood_nothing_stands_again(ready, stocked):
    ready.finder.find.click()
    stocked.start()
    stocked.run_all()
    ready.finder.swap.click()
    assert ready._draft.draft.overrides == {}


def test_a_plan_that_was_changed_meanwhile_is_not_filled(ready, stocked):
    ready.finder.find.click()
    ready._draft.put(overrides={"rows_per_step": 2})
    stocked.start()
    stocked.run_all()
    assert ready._draft.draft.overrides == {"rows_per_step": 2} and ready.finder.swap.text() == "Use this speed"


def test_stopped_it_changes_nothing(ready, stocked):
    ready.finder.find.click()
    ready.finder.stop.click()
    stocked.settle()
    assert stocked.queue.jobs()[0].state is State.CANCELLED and "Nothing was changed" in words_of(ready.finder)
    assert ready._draft.draft.overrides == {} and ready.finder.find.isEnabled()
    stocked.queue.remove(stocked.queue.jobs()[0].id)
    stocked.settle()
    assert ready.finder.job is None and "Stopped" not in words_of(ready.finder)


@pytest.mark.parametrize("outcome, says", [(events.Finished({"learning_rate": None, "lowest": None, "curve": [[1e-6, 1.0]]}), "No speed made"),
                                           (BadData("The file is empty.", do="Choose another."), "The file is empty.")])
def test_what_brings_nothing_is_said(ready, stocked, outcome, says):
    def work(spec, run):
        if isinstance(outcome, Exception):
            raise outcome
        yield outcome

    stocked.work["find-speed"] = work
    ready.finder.find.click()
    stocked.start()
    stocked.run_all()
    assert says in words_of(ready.finder) and ready._draft.draft.overrides == {} and not ready.finder.swap.isVisible()
