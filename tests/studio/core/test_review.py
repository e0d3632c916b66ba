"""The sentences of a comparison, and the ballot that tells nobody which side is which."""

import pytest

from engine.events import Reviewed
from studio.core import review
from studio.core.review import Ballot


def row(k: int, before="old", after="new") -> Reviewed:
    return Reviewed(k, f"Question {k}", "wanted", 2.0, 1.0, "win", f"{before} {k}", f"{after} {k}")


def result(**changes) -> dict:
    return {"rows": 8, "wins": 5, "same": 2, "losses": 1, "interval": [0.1, 0.3], "strengths": {"0.5": 2.0, "0.75": 1.5, "1": 1.4},
            "general": {"rows": 24, "before": 2.0, "after": 2.1, "forgotten": False}, **changes}


def test_a_lower_strength_is_only_advised_when_it_is_noticeably_better():
    assert review.better_strength(result()) is None
    assert review.better_strength(result(strengths={"0.5": 1.399, "0.75": 1.5, "1": 1.4})) is None
    assert review.better_strength(result(strengths={"0.5": 1.2, "0.75": 1.3, "1": 1.4})) == 0.5
    assert review.better_strength({}) is None


def test_the_sentences_promise_nothing_that_the_numbers_do_not():
    assert "10 % to 30 %" in " ".join(review.sentences(result()))
    assert "about 30 % less" in " ".join(review.sentences(result(interval=[0.299, 0.301])))
    assert "too few" in " ".join(review.sentences(result(interval=[-0.1, 0.3])))
    assert "forgotten something" in " ".join(review.sentences(result(general={"rows": 24, "before": 2, "after": 3, "forgotten": True})))
    assert review.sentences({"rows": 0, "general": {}}) == []


def test_both_sides_are_taken_and_every_vote_is_for_whom_it_was():
    ballot = Ballot.of([row(k) for k in range(40)])
    assert len(ballot.pairs) == review.PAIRS
    many, first = Ballot([row(k) for k in range(60)]), 0
    while many.now is not None:
        a, b = many.sides()
        assert {a, b} == {many.now.before, many.now.after}
        first += a.startswith("new")
        many.vote("A" if a.startswith("new") else "B")
    assert set(many.votes) == {"taught"} and 15 < first < 45, "neither side is always the taught one"


@pytest.mark.parametrize(("side", "counted"), [("same", "same"), ("A", None), ("B", None)])
def test_a_vote_counts_once(side, counted):
    ballot = Ballot.of([row(1)])
    taught = "A" if ballot.sides()[0].startswith("new") else "B"
    ballot.vote(side)
    assert ballot.votes == [counted or ("taught" if side == taught else "untaught")] and ballot.now is None


def test_equal_or_missing_answers_are_no_pair():
    assert Ballot.of([row(1, "same", "same"), Reviewed(2, "q", "w", 1, 1, "same")]).pairs == []
