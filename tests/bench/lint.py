"""How well the rules find what is wrong with examples: faults sown into clean rows, and recall and precision counted for each rule.

    python -m tests.bench.lint [--rows 1500] [--each 40] [--seed 0] [--write]

Three files, English, German and French (`tests.bench.lint_corpus`). The clean rows hold what is easily taken for a fault: order, parcel,
article and tax numbers, versions, dates, ISBNs, hashes, addresses in a network, words such as “password:” without one, short answers
without a full stop. A row of another rule's fault that is reported counts as wrong, too. ``--write`` keeps the figures in
``tests/bench/results/lint.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.data.lint import check                                                 # noqa: E402
from engine.data.shapes import load                                                # noqa: E402
from engine.data.split import held_out                                             # noqa: E402
from tests.bench import lint_corpus as corpus                                      # noqa: E402

RESULTS = Path(__file__).parent / "results" / "lint.json"
CHAT = ("{% for m in messages %}{% if m['role'] != 'system' and loop.index0 and m['role'] == messages[loop.index0 - 1]['role'] %}"
        "{{ raise_exception('turns must alternate') }}{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")         # strict about turns, as those of several models are
LANGUAGES = ("en", "de", "fr")
Pair = tuple[str, str]


def turns(*said: str) -> list[dict]:
    return [{"role": "user" if n % 2 == 0 else "assistant", "content": text} for n, text in enumerate(said)]


def clean(lang: str, count: int, draw: random.Random) -> list[Pair]:
    """Different rows without a fault, a third of them with an answer that looks like one."""
    ask, answer = corpus.SERIES[lang]
    found = {ask.format(thing=thing): answer.format(thing=thing) for thing in corpus.GOODS[lang]}
    while len(found) < count:
        ask, answer = draw.choice(corpus.ASKS[lang])
        facts = {"thing": draw.choice(corpus.GOODS[lang]), **corpus.facts(draw)}
        if draw.random() < 0.34:
            answer = draw.choice(corpus.LOOKALIKES[lang])
        found.setdefault(ask.format(**facts), answer.format(**facts))
    pairs = list(found.items())
    draw.shuffle(pairs)
    return pairs


def faults(lang: str, draw: random.Random) -> dict[str, Callable[[int, str, str], list]]:
    """Rule → the rows that take a clean row's place. Of several the last is the faulty one, except where `sown` says otherwise."""
    size = draw.randint(120, 160)

    def personal(kind: str):
        def spoil(n: int, ask: str, answer: str) -> list:
            it = draw.choice(corpus.CARRIER[lang]).format(it=corpus.PERSONAL[kind](draw))
            return [turns(f"{ask} {it}", answer)] if n % 4 == 0 else [turns(ask, f"{answer.rstrip('.')}. {it}")]
        return spoil

    def twins(n: int, ask: str, answer: str) -> list:
        long = f"{answer.rstrip('.')}.{corpus.TAIL[lang]}"
        again = corpus.noisy(long, draw)
        while again == long:
            again = corpus.noisy(long, draw)
        return [turns(ask, long), turns(ask, again)]
    other = lambda ask, answer: turns(ask, corpus.AGAIN[lang].format(k=draw.randint(2, 40)))      # noqa: E731
    return {
        "duplicate": lambda n, ask, answer: [turns(ask, answer), turns(ask, answer)],
        "near-duplicate": twins,
        "contradiction": lambda n, ask, answer: [turns(ask, answer), turns(ask, answer), other(ask, answer)],
        "empty": lambda n, ask, answer: [turns(ask, corpus.NOTHING[lang][n % len(corpus.NOTHING[lang])])],
        "cut": lambda n, ask, answer: [turns(ask, corpus.cut(answer, lang, draw, size))],
        "too-long": lambda n, ask, answer: [turns(ask, " ".join(f"{answer} {corpus.TAIL[lang]} {k * n}." for k in range(14)))],
        "language": lambda n, ask, answer: [turns(ask, corpus.OTHER[lang][n % len(corpus.OTHER[lang])])],
        "marks": lambda n, ask, answer: [turns(ask, f"{answer} " + ("<|im_end|>", "[/INST] ?", "<start_of_turn>user ?", "</s>",
                                                                     "<|eot_id|>", "<｜Assistant｜>")[n % 6])],
        "nothing-learned": lambda n, ask, answer: [[*turns(ask), *turns(answer), {"role": "assistant", "content": answer}]]
        if n % 2 else [[*turns(ask, answer), {"role": "assistant", "content": f"2: {answer}"}]],
        "left-out": lambda n, ask, answer: [(turns(ask, ""), turns(ask), [{"role": "assistant", "content": answer}],
                                             [{"role": "robot", "content": ask}, *turns(ask, answer)[1:]], None,
                                             [*turns(ask, answer), {"role": "system", "content": "x"}, *turns(ask, answer)])[n % 6]],
        **{f"personal-{kind}": personal(kind) for kind in corpus.PERSONAL},
    }


def sown(lang: str, rows: int, each: int, seed: int) -> tuple[list, dict[str, set[int]], list[tuple[int, int]]]:
    """Rows in mixed order; rule → places of its faults among the rows that can be used; pairs of places that say the same."""
    draw = random.Random(f"{lang} {seed}")
    good, kinds = clean(lang, rows, draw), faults(lang, draw)
    blocks, here = [], 0
    for rule, spoil in kinds.items():
        for n in range(3 * each if rule in ("near-duplicate", "duplicate") else each):
            blocks.append((rule, spoil(n, *good[here])))
            here += 1
    blocks += [("", [turns(*pair)]) for pair in good[here:]]
    draw.shuffle(blocks)
    made, places, same, usable = [], {rule: set() for rule in kinds}, [], 0
    for rule, block in blocks:
        if rule == "left-out":
            places[rule].add(-len(made) - 1)
            made += block
            continue
        if rule == "near-duplicate":       # all but the one that says most
            texts = ["\n".join(m["content"] for m in row) for row in block]
            places[rule].add(usable + (0 if len(texts[0]) < len(texts[1]) else 1))
            same.append((usable, usable + 1))
        elif rule == "contradiction":
            places["duplicate"].add(usable + 1)
            places[rule].add(usable + 2)
        elif rule:
            places[rule].add(usable + len(block) - 1)
        made += block
        usable += len(block)
    return made, places, same


def measure(lang: str, rows: int, each: int, seed: int, folder: Path, tokenizer=None, max_length: int = 1200) -> dict[str, tuple[int, int, int]]:
    """Rule → (sown, found of these, found in all). ``leak``: of two rows that say the same, one is held back and the other learned."""
    made, places, same = sown(lang, rows, each, seed)
    path = folder / f"sown-{lang}.jsonl"
    path.write_text("\n".join(json.dumps({"messages": row}) for row in made), encoding="utf-8")
    data = load(path)
    held = held_out(data.rows.keys, 0.1)
    places["leak"] = {b if a in held else a for a, b in same if (a in held) != (b in held)}
    report = check(data, 0.1, tokenizer, max_length=max_length)
    problems = {problem.rule: problem for problem in report.problems if problem.rule != "left-out"}
    found = {rule: set(problem.rows) for rule, problem in problems.items()}
    figures = {}
    for rule, wanted in places.items():
        if tokenizer is None and rule in ("too-long", "nothing-learned"):
            continue
        if rule == "left-out":             # these are no rows any more: told by reason and number
            told = sum(problem.count for problem in report.problems if problem.rule == rule)
            figures[rule] = len(wanted), min(told, len(wanted)), told
        else:
            figures[rule] = len(wanted), len(wanted & found.get(rule, set())), len(found.get(rule, set()))
    return figures


def strict_tokenizer():
    """The tests' tokenizer with a chat template that refuses what many refuse."""
    from engine.data.render import prepare_tokenizer
    from tests.support.tiny import make_tokenizer

    tokenizer = prepare_tokenizer(make_tokenizer())
    tokenizer.chat_template = CHAT
    return tokenizer


def main() -> None:
    """Print a table: rule, faults sown, and recall and precision in each language and together."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--each", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = strict_tokenizer()
        by_language = {lang: measure(lang, asked.rows, asked.each, asked.seed, Path(folder), tokenizer) for lang in LANGUAGES}
    print(f"{'rule':<17}{'sown':>6}{'recall':>8}{'precision':>11}   " + "".join(f"{lang + ' r/p':>14}" for lang in LANGUAGES))
    kept = {}
    for rule in by_language["en"]:
        three = [by_language[lang][rule] for lang in LANGUAGES]
        total = tuple(map(sum, zip(*three)))
        kept[rule] = {"sown": total[0], "recall": _share(total[1], total[0]), "precision": _share(total[1], total[2])}
        print(f"{rule:<17}{total[0]:>6}{kept[rule]['recall']:>8.3f}{kept[rule]['precision']:>11.3f}   " +
              "".join(f"{_share(right, wanted):>8.2f}/{_share(right, all_):<5.2f}" for wanted, right, all_ in three))
    if asked.write:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent).stdout.strip()
        RESULTS.write_text(json.dumps({"date": datetime.date.today().isoformat(), "commit": commit, "rows": 3 * asked.rows, "seed": asked.seed,
                                       "rules": kept}, indent=1) + "\n", encoding="utf-8")


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 1.0


if __name__ == "__main__":
    main()
