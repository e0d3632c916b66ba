"""What all layers of one adapter have in common."""

from __future__ import annotations

from collections.abc import Iterable

from engine.checkpoint.load import Place
from engine.law import TensorSpec


def by_law(places: Iterable[Place]) -> list[list[Place]]:
    """Places that follow the same law, together."""
    groups: dict[int, list[Place]] = {}
    for place in places:
        groups.setdefault(id(place.method), []).append(place)
    return list(groups.values())


def shared_specs(places: Iterable[Place]) -> dict[str, TensorSpec]:
    """The shared tensors that the methods of these layers ask for; each method is asked once, with all of its sites."""
    return {key: spec for group in by_law(places) for key, spec in group[0].method.shared(group[0].config, [p.site for p in group]).items()}
