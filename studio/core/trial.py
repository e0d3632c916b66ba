"""What Try remembers of a stack: strengths kept to compare, an exported model beside it, and how blind votes went. No Qt."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

KEPT = ("a", "b")                          # columns at strengths that were kept to compare
SAME = "same"                              # the vote of who hears no difference
COLUMNS = ("stack", *KEPT, "file", "base")
MOST = 4                                   # columns side by side


@dataclass(frozen=True)
class Trial:
    """``kept``: column → entry of the stack → strength; ``votes``: column or `SAME` → how often; ``model``: folder of the exported model."""

    kept: dict[str, dict[int, float]] = field(default_factory=dict)
    votes: dict[str, int] = field(default_factory=dict)
    model: str = ""

    def to_dict(self) -> dict:
        return {"kept": {column: {str(id): strength for id, strength in strengths.items()} for column, strengths in self.kept.items()},
                "votes": self.votes, "model": self.model}

    @classmethod
    def from_dict(cls, data: object) -> "Trial":
        """What can be read of it; the rest is as in a new one."""
        data = data if isinstance(data, dict) else {}
        kept, votes, model = data.get("kept"), data.get("votes"), data.get("model")
        return cls({column: strengths for column in KEPT if (strengths := _strengths(kept.get(column)))} if isinstance(kept, dict) else {},
                   {who: n for who in (*COLUMNS, SAME) if type(n := votes.get(who)) is int and n > 0} if isinstance(votes, dict) else {},
                   model if isinstance(model, str) else "")


def _strengths(data: object) -> dict[int, float]:
    found = data.items() if isinstance(data, dict) else ()
    return {int(id): float(strength) for id, strength in found
            if str(id).isdecimal() and type(strength) in (int, float) and math.isfinite(strength)}
