"""Methods on cards: what a person picks is what the plan asks for."""

from engine import specs
from engine.store.resources import resource
from studio.core import methods
from tests.studio.kit import words_of

import pytest


@pytest.fixture
def plan_page(stocked, teach):
    panel = teach
    panel.use_file(resource("samples/shop.csv"))
    panel.use_model(stocked.base)
    stocked.settle()
    panel.draft.put(name="Opening hours")
    panel.show_step("plan")
    page = panel.plan
    page.teach = panel
    return page


def spec_of(page) -> specs.TrainSpec:
    return page._final(page._draft.draft.preset)


@pytest.mark.parametrize("choice", methods.CARDS)
def test_each_card_is_a_plan_of_its_method(plan_page, choice):
    plan_page.method_fold.open()
    plan_page.method_cards.cards[choice].click()
    spec = spec_of(plan_page)
    assert spec.method == methods.CARDS[choice].peft_type and spec.problems() == {}
    assert spec.method_config == methods.settings(choice, 16) and methods.CARDS[choice].title in plan_page.method_fold.head.text()
    assert [key for key, made in plan_page.method_cards.cards.items() if made.isChecked()] == [choice]


def test_any_other_method_is_in_the_list_and_brings_its_own_form(plan_page, stocked):
    known = stocked.talk.answers["describe-methods"]

    def more(request):
        report = known(request)
        field = {**report.methods[0]["fields"][0], "name": "n_frequency", "label": "Frequencies", "default": 1000}
        return specs.MethodsReport(methods=[*report.methods, {"peft_type": "FOURIERFT", "title": "FourierFT", "help": "Tiny files.",
                                                              "fields": [field]}])

    stocked.talk.answers["describe-methods"] = more
    plan_page.method_fold.open()
    stocked.settle()
    cards = plan_page.method_cards
    cards.others.setCurrentIndex(cards.others.findData("FOURIERFT"))
    cards.others.activated.emit(cards.others.currentIndex())
    assert spec_of(plan_page).method == "FOURIERFT" and "Tiny files." in words_of(cards)
    assert not any(made.isChecked() for made in cards.cards.values())
    assert list(plan_page._method_form.fields) == ["n_frequency"]
    cards.cards["LORA"].click()
    assert spec_of(plan_page).method == "LORA" and cards.others.currentIndex() == 0


def test_settings_of_the_old_method_are_not_carried_over(plan_page):
    plan_page._draft.put(method_overrides={"r": 99})
    plan_page.method_cards.cards["IA3"].click()
    assert "r" not in spec_of(plan_page).method_config


def test_what_needs_too_much_memory_offers_buttons_that_change_the_plan(plan_page, stocked):
    small = stocked.talk.answers["estimate-plan"]

    def large(request):
        report = small(request)
        report.memory_mb = 9000 if request.plan.max_length > 512 else 4000
        return report

    stocked.talk.answers["estimate-plan"] = large
    plan_page._known.clear()
    plan_page._ask_prices()
    stocked.settle()
    assert "more memory than is free" in words_of(plan_page)
    buttons = [plan_page._remedies.itemAt(i).widget() for i in range(plan_page._remedies.count())]
    shorter = next(b for b in buttons if b is not None and "512" in b.text())
    shorter.click()
    plan_page._ask_prices()
    stocked.settle()
    assert spec_of(plan_page).max_length == 512 and "more memory than is free" not in words_of(plan_page)
