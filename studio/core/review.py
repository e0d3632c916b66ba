"""What a comparison found, in sentences; and the blind vote: pairs of answers in an order that nobody knows beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.events import Reviewed
from studio.core.text import amounts, number
from studio.core.text import teach as words

PAIRS = 5
WORTH = 0.02                               # share of error by which a lower strength must be better to be advised


def sentences(result: dict) -> list[str]:
    """What ``Finished.result`` of a review says, the most important first."""
    said = []
    if result.get("rows"):
        said.append(words.REVIEW_OUTCOMES(wins=result["wins"], same=result["same"], losses=result["losses"]))
        low, high = map(amounts.percent, result["interval"])
        said.append(words.REVIEW_INTERVAL_OPEN() if result["interval"][0] <= 0 else words.REVIEW_INTERVAL(low=low, high=high) if low != high
                    else words.REVIEW_INTERVAL_NARROW(about=low))
        if (lower := better_strength(result)) is not None:
            said.append(words.REVIEW_LOWER_BETTER(strength=amounts.percent(lower), error=number(result["strengths"][f"{lower:g}"], 2)))
    general = result.get("general") or {}
    if general.get("rows"):
        sentence = words.REVIEW_FORGOTTEN if general["forgotten"] else words.REVIEW_NOT_FORGOTTEN
        said.append(sentence(rows=general["rows"], before=number(general["before"], 2), after=number(general["after"], 2)))
    return said


def better_strength(result: dict) -> float | None:
    """The lower strength at which unseen examples go noticeably better than at the full one, if there is one."""
    tried = result.get("strengths") or {}
    best = min(tried, key=tried.get, default="1")
    return float(best) if float(best) < 1 and tried[best] < tried["1"] * (1 - WORTH) else None


@dataclass
class Ballot:
    """Pairs to be judged one after the other. ``votes``: taught, untaught or same, in the order of the pairs."""

    pairs: list[Reviewed]
    votes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Sequence[Reviewed]) -> "Ballot":
        """Up to `PAIRS` rows whose answers differ, mixed by their content."""
        differing = [row for row in rows if row.before.strip() and row.after.strip() and row.before.strip() != row.after.strip()]
        return cls(sorted(differing, key=lambda row: _lot(row, "order"))[:PAIRS])

    @property
    def now(self) -> Reviewed | None:
        """The pair to be judged."""
        return self.pairs[len(self.votes)] if len(self.votes) < len(self.pairs) else None

    def sides(self) -> tuple[str, str]:
        """The two answers of the present pair, as A and B."""
        pair = self.now
        return (pair.after, pair.before) if self._taught_first(pair) else (pair.before, pair.after)

    def vote(self, side: str) -> None:
        """``side``: A, B or same."""
        taught = "A" if self._taught_first(self.now) else "B"
        self.votes.append("same" if side == "same" else "taught" if side == taught else "untaught")

    def sentence(self) -> str:
        """How it came out."""
        return words.VOTE_RESULT(taught=self.votes.count("taught"), n=len(self.votes), same=self.votes.count("same"))

    @staticmethod
    def _taught_first(pair: Reviewed) -> bool:
        return _lot(pair, "side")[0] % 2 == 0


def _lot(row: Reviewed, salt: str) -> bytes:
    return hashlib.sha256(f"{salt}/{row.row}/{row.question}/{row.before}/{row.after}".encode()).digest()
