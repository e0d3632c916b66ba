"""What a person can do: one registry, from which menus, shortcuts, the command palette and the tests are made. No Qt here."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from collections.abc import Callable, Iterator


def _always() -> bool:
    return True


@dataclass(frozen=True)
class Action:
    """One thing that can be done.

    Args:
        id: stable dotted name, e.g. ``"stack.remove"``. title: as in a menu. callback: takes nothing.
        shortcut: portable text such as ``"Ctrl+Z"``, or empty. help: one sentence. category: the menu it stands in.
        enabled: True, or False, or a sentence that says why not now.
        checked: for an on/off action: its present state. icon: name of a file in ``resources/icons``.
        local: the shortcut belongs to one panel and is bound there (e.g. Delete), not to the whole window.
    """

    id: str
    title: str
    callback: Callable[[], object]
    shortcut: str = ""
    help: str = ""
    category: str = ""
    enabled: Callable[[], bool | str] = _always
    checked: Callable[[], bool] | None = None
    icon: str = ""
    local: bool = False

    def refusal(self) -> str | None:
        """None if it can be done now, else the reason why not (may be empty)."""
        answer = self.enabled()
        return None if answer is True else answer or ""


class ActionRegistry:
    """All actions by id, in the order they were added."""

    def __init__(self) -> None:
        self._actions: dict[str, Action] = {}
        self._recent: deque[str] = deque(maxlen=8)
        self._watchers: list[Callable[[], None]] = []

    def add(self, *actions: Action) -> None:
        """Register actions. Raises `ValueError` for an id or a window-wide shortcut that is taken."""
        for action in actions:
            if action.id in self._actions:
                raise ValueError(f"two actions are called {action.id!r}")
            for other in self._actions.values():
                if action.shortcut and action.shortcut == other.shortcut and not (action.local and other.local):
                    raise ValueError(f"{action.id!r} and {other.id!r} share the shortcut {action.shortcut}")
            self._actions[action.id] = action
        for watcher in self._watchers:
            watcher()

    def __getitem__(self, id: str) -> Action:
        return self._actions[id]

    def __contains__(self, id: str) -> bool:
        return id in self._actions

    def __iter__(self) -> Iterator[Action]:
        return iter(list(self._actions.values()))

    def category(self, name: str) -> list[Action]:
        return [action for action in self if action.category == name]

    def subscribe(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher`` whenever actions were added."""
        self._watchers.append(watcher)

    def execute(self, id: str) -> str | None:
        """Do it and return None; or do nothing and return the reason why it cannot be done now."""
        action = self._actions[id]
        if (reason := action.refusal()) is not None:
            return reason
        if id in self._recent:
            self._recent.remove(id)
        self._recent.appendleft(id)
        action.callback()
        return None

    def search(self, query: str) -> list[Action]:
        """Best first. Letters must occur in order in "category title"; with no query the recent ones lead."""
        if not query.strip():
            recent = [self._actions[id] for id in self._recent if id in self._actions]
            return recent + [action for action in self if action not in recent]
        scored = [(score, place, action) for place, action in enumerate(self)
                  if (score := match(query, f"{action.category} {action.title}")) is not None]
        return [action for _, _, action in sorted(scored, key=lambda found: found[:2])]


def match(query: str, text: str) -> float | None:
    """How badly ``query`` fits ``text`` (0 is best), or None if its letters do not all occur in order.

    The beginning of a word beats the first letters of words ("as" finds "Add to Stack"), then come pieces of words, then scattered letters.
    """
    query, text = query.strip().casefold(), text.casefold()
    if (place := text.find(query)) >= 0:
        begins = place == 0 or text[place - 1] == " "
        if begins:
            return place / 1000
    letters = query.replace(" ", "")
    initials = iter(word[0] for word in text.split())
    if all(letter in initials for letter in letters):
        return 1
    if place >= 0:
        return 2 + place / 1000
    places, position = [], -1
    for letter in letters:
        if (position := text.find(letter, position + 1)) < 0:
            return None
        places.append(position)
    return 3 + (places[-1] - places[0]) / 100
