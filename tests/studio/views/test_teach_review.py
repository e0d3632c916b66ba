"""Review: the comparison follows the training by itself; the vote is blind, kept, and opens the rows."""

import json

import pytest
from PySide6.QtWidgets import QLabel

from engine import events, specs
from engine.errors import BadAdapter
from engine.store.resources import resource
from studio.jobs.job import State
from tests.studio.kit import words_of


@pytest.fixture
def taught(stocked, teach):
    panel = teach
    panel.use_file(resource("samples/shop.csv"))
    panel.use_model(stocked.base)
    stocked.settle()
    panel.draft.put(name="Opening hours")
    panel.show_step("plan")
    panel.plan.submit()
    stocked.start()
    return panel


@pytest.fixture
def finish(taught, stocked, qtbot):
    """Work until training and comparison are over, and the page has read all of it."""
    def run():
        stocked.run_all()
        stocked.run_all()                  # the comparison was asked for when the training ended
        qtbot.waitUntil(lambda: not taught.review._past_rows.reading)

    return run


def test_the_comparison_follows_by_itself_and_is_told_in_sentences(taught, stocked, finish):
    finish()
    train, review = stocked.queue.jobs()
    assert isinstance(review.spec, specs.ReviewSpec) and review.spec.adapter == train.result["adapter"] and review.state is State.FINISHED
    shown = words_of(taught.review)
    for words in ("Better in 6, the same in 0, worse in 2", "12 % to 44 %", "At a strength of 75 %", "Nothing forgotten"):
        assert words in shown
    assert not taught.review.compare.isVisible()
    assert [row.row for row in taught.review.rows.rows] == list(range(8))


def test_the_answers_before_and_after_are_shown_whole(taught, finish, qtbot):
    finish()
    taught.show_step("review")
    taught.review.row_fold.open()
    whole = lambda: [label for label in taught.review.rows.findChildren(QLabel) if label.isVisible()      # noqa: E731
                     and label.height() < label.heightForWidth(label.width())] == []
    qtbot.waitUntil(lambda: "About 1 dollars, I think." in words_of(taught.review.rows) and whole())


def test_the_vote_is_blind_kept_and_opens_the_rows(taught, stocked, finish, qtbot):
    finish()
    page = taught.review
    assert page.vote.isVisible() and not page.rows.isVisible()
    page.vote._texts["A"].setText("word " * 300)       # beside a long answer a short one stays at the top
    qtbot.waitUntil(lambda: page.vote._texts["A"].height() > 60)
    assert page.vote._texts["B"].y() == page.vote._texts["A"].y() and page.vote._texts["B"].height() < 60
    for _ in range(5):
        sides = page.vote.ballot.sides()
        page.vote.choices["A" if sides[0].startswith("Item") else "B"].click()     # always the taught one
    assert page.rows.isVisible() and "5 of 5" in words_of(page)
    recipe = json.loads((stocked.home.adapters / "Opening-hours" / "recipe.json").read_text())
    assert recipe["votes"] == ["taught"] * 5 and recipe["result"]["steps"] == 40
    page.refresh()
    qtbot.waitUntil(lambda: not page._past_rows.reading)
    assert page.vote.ballot.now is None and "5 of 5" in words_of(page)


def test_all_rows_can_be_seen(taught, stocked, finish):
    finish()
    page = taught.review
    page.row_fold.open()
    assert "item 7" not in words_of(page.rows)
    page.rows.more.click()
    assert "item 7" in words_of(page.rows) and not page.rows.more.isVisible()


def test_a_lower_strength_that_is_better_is_what_the_button_takes(taught, stocked, finish, qtbot):
    finish()
    with qtbot.waitSignal(taught.kept) as kept:
        taught.review.lower.click()
    assert kept.args[2] == 0.75


def test_a_comparison_that_fails_says_why_and_can_be_asked_for_again(taught, stocked, finish):
    good = stocked.work["review"]

    def bad(spec, run):
        yield events.Progress("Reading the examples")
        raise BadAdapter("The examples are gone.", "The file was moved.", "Put it back.")

    stocked.work["review"] = bad
    finish()
    assert "The examples are gone." in words_of(taught.review) and taught.review.compare.isVisible()
    stocked.work["review"] = good
    taught.review.compare.click()
    finish()
    assert "Better in 6" in words_of(taught.review) and "The examples are gone." not in words_of(taught.review)
