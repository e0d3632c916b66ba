"""The registry refuses clashes, does or explains, and finds by a few letters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.core.actions import Action, ActionRegistry, match


def registry(*actions: Action) -> ActionRegistry:
    made = ActionRegistry()
    made.add(*actions)
    return made


def test_ids_and_shortcuts_are_unique_except_between_panels():
    first = Action("a", "A", list, "Ctrl+Z")
    for clash in (Action("a", "B", list), Action("b", "B", list, "Ctrl+Z"), Action("b", "B", list, "Ctrl+Z", local=True)):
        with pytest.raises(ValueError):
            registry(first, clash)
    registry(Action("a", "A", list, "Del", local=True), Action("b", "B", list, "Del", local=True))


def test_an_action_is_done_or_says_why_not():
    done = []
    actions = registry(Action("yes", "Yes", lambda: done.append(1)), Action("no", "No", lambda: done.append(2), enabled=lambda: "Because."),
                       Action("never", "Never", lambda: done.append(3), enabled=lambda: False))
    assert actions.execute("yes") is None
    assert actions.execute("no") == "Because."
    assert actions.execute("never") == ""
    assert done == [1]


def test_recent_actions_lead_when_nothing_is_typed():
    actions = registry(*(Action(name, name, list) for name in "abcd"))
    for id in "cab":
        actions.execute(id)
    assert [a.id for a in actions.search("")] == ["b", "a", "c", "d"]


@pytest.mark.parametrize("query, first", [("undo", "Undo"), ("as", "Add to Stack"), ("stack", "Add to Stack"), ("lgt", "Larger text"),
                                          ("EDIT u", "Undo")])
def test_search_finds_what_is_meant(query, first):
    actions = registry(Action("1", "Undo", list, category="Edit"), Action("2", "Add to Stack", list), Action("3", "Larger text", list),
                       Action("4", "Laughing basses", list))
    assert actions.search(query)[0].title == first


@given(st.text(max_size=20), st.text(max_size=30))
def test_a_match_means_that_all_letters_occur(query, text):
    cost = match(query, text)
    if cost is not None:
        assert cost >= 0
        assert all(c in text.casefold() for c in query.strip().casefold() if c != " ") or query.strip().casefold() in text.casefold()
    if query.strip() and query.strip().casefold() in text.casefold():
        assert cost is not None


def test_watchers_hear_of_new_actions():
    actions, heard = ActionRegistry(), []
    actions.subscribe(lambda: heard.append(len(list(actions))))
    actions.add(Action("a", "A", list), Action("b", "B", list))
    assert heard == [2]
