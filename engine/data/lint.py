"""What is wrong with examples, and how to mend it: one pass over the rows, and time that grows with their number.

A rule is a short function in `engine.data.rules`. Here they are asked row by row; what is held meanwhile is a few numbers a row. Every fix
is a list of `Edit`s: it is added to the plan, never written into the file, and can be undone.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

from engine.data.render import Unusable, control_signs, render
from engine.data.rows import Row, Rows, Watch, unwatched
from engine.data.rules import answers, language, marks, personal, twins
from engine.data.shapes import Dataset, load
from engine.data.split import held_out
from engine.errors import BadModel
from engine.specs import Edit, Fix, LintData, LintReport, Problem

RULES = ("nothing-learned", "leak", "contradiction", "duplicate", "near-duplicate", "empty", "cut", "too-long", "language",
         *(f"personal-{kind}" for kind in personal.KINDS), "marks", "left-out")
SHOWN = 200                                # rows of a problem that are named in the report
MAX_TWINS = 300_000                        # rows among which near-duplicates are looked for (64 bytes each)
MAX_COMPARED = 50_000                      # rows that are compared word by word
MAX_RENDERED = 20_000                      # rows that are given to the model's tokenizer; more only where they are suspicious
MAX_WORDS = 200_000                        # different words that are remembered
MAX_NAMED = 100_000                        # rows that one edit may name


@dataclass
class _Hits:
    """Places of rows that a rule found, with a word of evidence for the first."""

    places: array = field(default_factory=lambda: array("q"))
    evidence: list[str] = field(default_factory=list)

    def add(self, place: int, evidence: str = "") -> None:
        if not self.places or self.places[-1] != place:
            self.places.append(place)
            if len(self.evidence) < SHOWN:
                self.evidence.append(_short(evidence))


@dataclass
class _Facts:
    """What is kept of every row: two hashes, a few marks, and the first rows' signatures."""

    asked: array = field(default_factory=lambda: array("Q"))
    answered: array = field(default_factory=lambda: array("Q"))
    codes: list[str] = field(default_factory=list)
    signatures: bytearray = field(default_factory=bytearray)           # of `twins.BANDS` 32-bit numbers each
    odd_ends: array = field(default_factory=lambda: array("q"))       # places of answers that do not end as answers do
    lengths: Counter = field(default_factory=Counter)                  # of these answers
    finished: int = 0
    long: int = 0                                                      # answers of a few words at least
    words: Counter = field(default_factory=Counter)                    # of the answers, `MAX_WORDS` different ones at most


def lint(request: LintData, watch: Watch = unwatched) -> LintReport:
    """Look at all rows. Raises `BadData`, `BadModel`."""
    from engine.data.preview import tokenizer_of

    data = load(request.data, request.roles, request.edits, watch)
    tokenizer = tokenizer_of(request.base, "lint") if request.base else None
    return check(data, request.holdout, tokenizer, request.system, request.max_length, watch)


def check(data: Dataset, holdout: float, tokenizer=None, system: str = "", max_length: int = 1024, watch: Watch = unwatched) -> LintReport:
    """`lint` for data and a tokenizer that are at hand. ``watch(stage, rows, of)`` is told now and then, and may raise to end it."""
    rows, notes = data.rows, []
    held = held_out(rows.keys, holdout)
    facts, hits = _Facts(), defaultdict(_Hits)
    signs = frozenset(control_signs(tokenizer)) if tokenizer is not None else frozenset()
    longest, found_marks = 0, {}
    for place, row in enumerate(rows):
        _note(facts, row, place)
        _look_at_text(hits, row, place, signs, found_marks)
        if tokenizer is not None:
            longest = max(longest, _look_at_tokens(hits, row, place, tokenizer, system, max_length))
        if place % 100 == 99:
            watch("Looking at every example", place + 1, len(rows))
    watch("Comparing the examples", len(rows), len(rows))
    _cut(hits, facts, rows)
    _languages(hits, facts)
    _duplicates(hits, rows)
    pairs, note = _twins(facts, rows, set(hits["duplicate"].places))
    notes += note
    _near_duplicates(hits, pairs, rows)
    _contradictions(hits, facts, rows, {frozenset(pair) for pair in pairs})
    _leaks(hits, facts, rows, held, pairs)
    if tokenizer is None:
        notes.append("Length and what is learned were not looked at: no model is chosen.")
    problems = [_problem(rule, hits[rule], rows, found_marks, max_length, longest, facts) for rule in RULES if rule in hits and hits[rule].places]
    return LintReport(rows=len(rows), problems=problems + _left_out(data), notes=notes)


# --- row by row --------------------------------------------------------------------------------

def _note(facts: _Facts, row: Row, place: int) -> None:
    *before, last = row.messages
    asked = twins.plain_words("\n".join(m["content"] for m in before))
    answered = twins.plain_words(last["content"])
    facts.asked.append(_hash(" ".join(asked)) if before else 0)
    facts.answered.append(_hash(" ".join(answered) or last["content"]))
    facts.codes.append(language.language(last["content"]))
    if place < MAX_TWINS:
        facts.signatures += twins.bands(twins.shingles(asked + answered)).tobytes()
    if last["role"] == "assistant":
        facts.words.update(answered if len(facts.words) < MAX_WORDS else filter(facts.words.__contains__, answered))
        text = last["content"].rstrip()
        finished = answers.is_finished(text)
        if len(text.split()) >= 4:
            facts.long += 1
            facts.finished += finished
        if not finished or text.count("```") % 2:
            facts.odd_ends.append(place)
            facts.lengths[len(text)] += 1


def _look_at_text(hits: dict[str, _Hits], row: Row, place: int, signs: frozenset[str], found_marks: dict[str, int]) -> None:
    last = row.messages[-1]
    if last["role"] == "assistant" and answers.says_nothing(last["content"]):
        hits["empty"].add(place, last["content"])
    for message in row.messages:
        text = message["content"]
        for kind, start, end in personal.found(text):
            hits[f"personal-{kind}"].add(place, personal.mask(text[max(0, start - 40):end + 20]))
        for mark in marks.found(text, signs):
            found_marks[mark] = found_marks.get(mark, 0) + 1
            hits["marks"].add(place, mark)


def _look_at_tokens(hits: dict[str, _Hits], row: Row, place: int, tokenizer, system: str, max_length: int) -> int:
    """Render the row, unless there are very many and it is certainly short enough. Returns its tokens if it is too long."""
    size = sum(len(m["content"].encode()) for m in row.messages)
    if place >= MAX_RENDERED and size + len(system) + 64 < max_length:      # a token is at least a byte
        return 0
    try:
        tokens = len(render(row, tokenizer, system).ids)
    except Unusable as reason:
        if "control sign" not in str(reason):                                # that is the rule “marks”
            hits["nothing-learned"].add(place, row.messages[-1]["content"])
        return 0
    except BadModel as reason:             # this conversation's turns do not suit the model's template
        hits["nothing-learned"].add(place, reason.why or reason.what)
        return 0
    if tokens <= max_length:
        return 0
    hits["too-long"].add(place, f"{tokens:,}")
    return tokens


# --- what only many rows together show ---------------------------------------------------------

def _cut(hits: dict[str, _Hits], facts: _Facts, rows: Rows) -> None:
    share = facts.finished / facts.long if facts.long else 0.0
    known = sorted(word for word, times in facts.words.items() if times > 1)

    def fragment(word: str) -> bool:
        at = bisect_right(known, word)
        return len(word) > 1 and word.isalpha() and facts.words[word] < 2 and at < len(known) and known[at].startswith(word)
    for place, row in zip(facts.odd_ends, rows.pick(list(facts.odd_ends)) if facts.odd_ends else ()):
        text = row.messages[-1]["content"]
        if not answers.says_nothing(text) and answers.breaks_off(text, share, facts.lengths, len(facts.codes), fragment):
            hits["cut"].add(place, f"… {text[-60:]}")


def _languages(hits: dict[str, _Hits], facts: _Facts) -> None:
    usual = language.usual(Counter(facts.codes))
    for place, code in enumerate(facts.codes) if usual else ():
        if code and code != usual:
            hits["language"].add(place, code)


def _duplicates(hits: dict[str, _Hits], rows: Rows) -> None:
    seen: set[bytes] = set()
    for place, key in enumerate(rows.keys):
        if (raw := bytes.fromhex(key)) in seen:
            hits["duplicate"].add(place)
        seen.add(raw)


def _twins(facts: _Facts, rows: Rows, doubles: set[int]) -> tuple[list[tuple[int, int]], list[str]]:
    """Pairs of places that say the same in nearly the same words, and what was not looked at."""
    signatures = np.frombuffer(facts.signatures, np.uint32).reshape(-1, twins.BANDS)
    places = [place for place in range(len(signatures)) if place not in doubles]
    if len(places) < 2:
        return [], []
    notes = [f"Near-duplicates were looked for among the first {MAX_TWINS:,} examples."] if len(rows) > MAX_TWINS else []
    found = twins.candidates(signatures[places])
    wanted = sorted({places[n] for pair in found for n in pair})
    if len(wanted) > MAX_COMPARED:
        notes.append(f"Of {len(wanted):,} examples that resemble others, {MAX_COMPARED:,} were compared.")
        wanted = wanted[:MAX_COMPARED]
    shown = {}
    for place, row in zip(wanted, rows.pick(wanted)):
        words = twins.plain_words("\n".join(m["content"] for m in row.messages))
        roles = [m["role"] for m in row.messages]
        shown[place] = twins.shingles(words), twins.numbers(words), roles, twins.hashes(words), twins.hashes(_subject(row))
    pairs = []
    for a, b in ((places[a], places[b]) for a, b in found):
        if (a in shown and b in shown and shown[a][1:3] == shown[b][1:3] and twins.resemblance(shown[a][0], shown[b][0]) >= twins.ALIKE
                and not (len(np.setdiff1d(shown[a][4], shown[b][3], True)) and len(np.setdiff1d(shown[b][4], shown[a][3], True)))):
                # the same said of two different things is no repeat
            pairs.append((a, b))
    return pairs, notes


def _subject(row: Row) -> set[str]:
    """What a row is about: the words of its question that its answer says again."""
    *before, last = row.messages
    return set(twins.plain_words("\n".join(m["content"] for m in before))) & set(twins.plain_words(last["content"]))


def _near_duplicates(hits: dict[str, _Hits], pairs: list[tuple[int, int]], rows: Rows) -> None:
    """All of a group but the one that says most."""
    texts = _texts(rows, {place for pair in pairs for place in pair})
    for group in twins.groups(pairs):
        best = max(group, key=lambda place: (len(texts[place]), -place))
        for place in group:
            if place != best:
                hits["near-duplicate"].add(place, texts[best])
    _in_order(hits["near-duplicate"])


def _texts(rows: Rows, places: set[int], of: int | None = None) -> dict[int, str]:
    """Place → its words, or those of one message of it (-1 the answer), for as many as are compared. Walks through the rows once."""
    wanted = sorted(places)[:MAX_COMPARED]
    return {place: "\n".join(m["content"] for m in (row.messages if of is None else row.messages[of:][:1]))
            for place, row in zip(wanted, rows.pick(wanted))}


def _contradictions(hits: dict[str, _Hits], facts: _Facts, rows: Rows, alike: set[frozenset[int]]) -> None:
    """Rows with the same question and an answer that says something else than the question's most frequent one."""
    groups: dict[int, list[int]] = defaultdict(list)
    for place, asked in enumerate(facts.asked):
        if asked:
            groups[asked].append(place)
    several = [places for places in groups.values() if len({facts.answered[place] for place in places}) > 1]
    texts = _texts(rows, {place for places in several for place in places}, of=-1)
    for places in several:
        times = Counter(facts.answered[place] for place in places)
        usual = max(places, key=lambda place: (times[facts.answered[place]], place))     # of equally frequent ones the latest
        for place in places:
            if (facts.answered[place] != facts.answered[usual] and frozenset((place, usual)) not in alike and {place, usual} <= texts.keys()
                    and contradict(texts[place], texts[usual])):
                hits["contradiction"].add(place, f"{texts[place]} ≠ {texts[usual]}")
    _in_order(hits["contradiction"])


_NO = frozenset("no not never nein nicht kein keine keinen keinem keiner nie ne pas non jamais don't doesn't isn't can't cannot won't aren't".split())


def contradict(one: str, other: str) -> bool:
    """Whether two answers to one question say different things: other numbers, a yes for a no, or hardly a word in common."""
    a, b = twins.plain_words(one), twins.plain_words(other)
    if twins.numbers(a) != twins.numbers(b) or bool(_NO & set(a)) != bool(_NO & set(b)):
        return True
    return len(set(a) & set(b)) < 0.6 * len(set(a) | set(b))


def _leaks(hits: dict[str, _Hits], facts: _Facts, rows: Rows, held: set[int], pairs: list[tuple[int, int]]) -> None:
    """Learned rows that also stand, in the same or nearly the same words, in the part that is held back."""
    kept_back = {(facts.asked[place], facts.answered[place]) for place in held}
    leaking = {place for place in range(len(facts.asked)) if place not in held and (facts.asked[place], facts.answered[place]) in kept_back}
    for group in twins.groups(pairs):
        if held & set(group):
            leaking |= set(group) - held
    for place, text in _texts(rows, leaking).items():
        hits["leak"].add(place, text)


def _in_order(hits: _Hits) -> None:
    order = sorted(range(len(hits.places)), key=hits.places.__getitem__)
    hits.evidence = [hits.evidence[n] for n in order if n < len(hits.evidence)]
    hits.places = array("q", sorted(hits.places))


# --- what it says and offers -------------------------------------------------------------------

_SENTENCES = {
    "nothing-learned": "nothing is learned from {n}", "leak": "{n} of the learned part also stand in the part held back for testing",
    "contradiction": "{n} answer the same question differently than others", "duplicate": "{n} stand in the file more than once",
    "near-duplicate": "{n} say nearly the same as another", "empty": "the answer of {n} says nothing", "cut": "the answer of {n} breaks off",
    "too-long": "{n} are longer than {limit} tokens and will be left out", "language": "{n} are not in the language of the others",
    "personal-mail": "{n} contain an e-mail address", "personal-phone": "{n} contain a telephone number",
    "personal-iban": "{n} contain a bank account", "personal-card": "{n} contain a card number",
    "personal-key": "{n} contain a password or a secret key", "marks": "{n} contain signs of a chat template ({marks})",
}


def _problem(rule: str, hits: _Hits, rows: Rows, found_marks: dict[str, int], max_length: int, longest: int, facts: _Facts) -> Problem:
    count = len(hits.places)
    said = {"limit": max_length, "longest": longest} if rule == "too-long" else {"marks": " ".join(list(found_marks)[:4])} if rule == "marks" else (
        {"usual": language.usual(Counter(facts.codes))} if rule == "language" else {})
    sentence = _SENTENCES[rule].format(n=f"{count:,} example{'s' if count != 1 else ''}", **said)
    return Problem(rule=rule, count=count, rows=list(hits.places[:SHOWN]), evidence=hits.evidence, facts=said,
                   fixes=_fixes(rule, hits, rows, facts, found_marks, max_length), sentence=f"{sentence[0].upper()}{sentence[1:]}.")


def _fixes(rule: str, hits: _Hits, rows: Rows, facts: _Facts, found_marks: dict[str, int], max_length: int) -> list[Fix]:
    names = list(dict.fromkeys(rows.key(place) for place in hits.places[:MAX_NAMED]))
    drop = Fix("drop", [Edit("drop", names)])
    if rule == "duplicate":
        return [Fix("keep-one", [Edit("keep-one")])]
    if rule == "near-duplicate":
        return [Fix("keep-one", [Edit("drop", names)])]
    if rule == "contradiction":
        return [Fix("keep-usual", [Edit("drop", names)]), Fix("merge", _merges(hits, rows, facts))]
    if rule.startswith("personal-"):
        return [Fix("mask", [Edit("mask", [], [rule.removeprefix("personal-")])]), drop]
    if rule == "marks":
        return [Fix("strip", [Edit("strip", [], list(found_marks))]), drop]
    if rule == "too-long":
        return [Fix("shorten", [Edit("shorten", names, size=_size(hits, rows, max_length))]), drop]
    return [drop]


def _merges(hits: _Hits, rows: Rows, facts: _Facts) -> list[Edit]:
    """One edit a question: its answers one below the other."""
    questions = {facts.asked[place] for place in hits.places[:SHOWN]}
    groups: dict[int, dict[str, None]] = defaultdict(dict)
    for place, asked in enumerate(facts.asked):
        if asked in questions:
            groups[asked][rows.key(place)] = None
    return [Edit("merge", list(keys)) for keys in groups.values() if len(keys) > 1]


def _size(hits: _Hits, rows: Rows, max_length: int) -> int:
    """Letters that fit into the limit, by how many letters a token of these rows has."""
    texts = _texts(rows, set(hits.places[:50]))
    ratio = min(len(texts[place]) / int(tokens.replace(",", "")) for place, tokens in zip(hits.places[:50], hits.evidence))
    return max(40, int(0.9 * ratio * (max_length - 24)))


def _left_out(data: Dataset) -> list[Problem]:
    """Rows that could not be read as examples: told, and mended by being left out already."""
    found = Counter()
    for part in data.parts:
        found += part.reasons
    return [Problem(rule="left-out", count=count, evidence=[reason], facts={"reason": reason},
                    sentence=f"{count:,} {'row was' if count == 1 else 'rows were'} left out because {reason}.")
            for reason, count in found.most_common()]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _short(text: str, letters: int = 120) -> str:
    text = " ".join(text.split())
    return text if len(text) <= letters else f"{text[:letters].rstrip()} …"
