"""How well the rules find what is wrong with examples: faults sown into clean rows, and recall and precision counted for each rule.

    python tests/bench/lint.py [--rows 1200] [--each 30] [--seed 0]

The clean rows hold what is easily taken for a fault: prices, dates, times, order numbers, brackets, short answers, names of other
languages. A row of another rule's fault that is reported counts as wrong, too.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.data.lint import check                                                 # noqa: E402
from engine.data.shapes import load                                                # noqa: E402

GOODS = ("rye loaf", "walnut roll", "plum cake", "seed cracker", "butter croissant", "spelt bun", "honey biscuit", "cheese straw", "poppy bagel",
         "apple tart", "corn bread", "almond ring", "raisin plait", "olive focaccia", "cherry pie", "oat cookie")
ASKS = (
    ("What does a {thing} cost on order {n}?", "A {thing} costs {n}.50 euros on that order, including tax."),
    ("How long does a {thing} keep in box {n}?", "Kept dry in a paper bag, it stays fresh for two days after {d}.03.2024."),
    ("Is there milk in the {thing} from shelf {n}?", "Yes, there is a little milk in it; please ask at the counter (shelf {n}) if you are allergic."),
    ("Can I order a {thing} for {n} people?", "Certainly. Tell us by 18:30 on the day before, and it waits for you under number 2024-{n:04d}."),
    ("Who bakes the {thing} in branch {n}?", "Our colleague Piet bakes it there [branch {n}]. She learned the craft in Lyon and in Gdańsk."),
    ("Which wine goes with the {thing}, number {n}?", "Try a dry Riesling with it! “Der Winzer” around the corner has bottle {n} for 12.90 euros."),
    ("Do you deliver the {thing} to zone {n}?", "We do, every Tuesday and Friday between 7:00 and 9:15, for orders over {n} euros."),
    ("Does the {thing} come in size {n}?", "Not any more. The larger tins were sold in 2019, and size {n} was the last of them."),
)
GERMAN = ("Das ist ein Brot mit Nüssen und es wird bei uns jeden Tag von Hand gebacken, auch am Sonntag ({n}).",
          "Sie können es nicht bestellen, aber wir haben noch ein anderes für Sie, wenn Sie um {n} Uhr kommen.")
PERSONAL: dict[str, tuple[str, ...]] = {
    "mail": ("Write to ann.miller{n}@example.org and we reply the same day.", "Ask jo+{n}@bakery.co.uk about it, please."),
    "phone": ("Call us on +49 30 901820{n:02d} before noon.", "Our number is (555) 867-53{n:02d}, every day.", "Ring 0171 23456{n:02d} for it."),
    "iban": ("Please pay to DE89 3704 0044 0532 0130 00 for order {n}.", "Our account is GB82WEST12345698765432, purpose {n}."),
    "card": ("It was paid with 4111 1111 1111 1111 on order {n}.", "Card 5500-0000-0000-0004 was charged for {n}."),
    "key": ("The service answers to sk-proj-a8Kd93jfQwpeoX71mNzL{n:02d} only.", "Log in with password: krum3l!{n} at the till."),
}
Rows = list[tuple[str, str]]


def clean(count: int, draw: random.Random) -> Rows:
    """Different rows without a fault."""
    found: dict[str, str] = {}
    while len(found) < count:
        ask, answer = draw.choice(ASKS)
        facts = {"thing": draw.choice(GOODS), "n": draw.randint(1, 9999), "d": draw.randint(10, 28)}
        found.setdefault(ask.format(**facts), answer.format(**facts))
    return list(found.items())


def faults(draw: random.Random) -> dict[str, Callable[[int, str, str], tuple[Rows, str]]]:
    """Rule → what it does with the n-th clean row: the rows that take its place; all after the first are the faulty ones (or the only one)."""
    def personal(kind: str):
        return lambda n, ask, answer: [(ask, f"{answer} {PERSONAL[kind][n % len(PERSONAL[kind])].format(n=n + 10)}")]

    def other_number(n: int, ask: str, answer: str) -> Rows:
        return [(ask, answer), (ask, answer), (ask, f"No, that is not so any more: we changed it {n + 40} weeks ago.")]
    return {
        "duplicate": lambda n, ask, answer: [(ask, answer), (ask, answer)],
        "near-duplicate": lambda n, ask, answer: [(ask, f"{answer} We hope to see you soon in our shop by the old river bridge."),
                                                  (ask, f"{answer} We hope to see you soon in our shop by the old river.")],
        "contradiction": other_number,
        "empty": lambda n, ask, answer: [(ask, ("N/A", "...", "tbd", "siehe oben", "-")[n % 5])],
        "cut": lambda n, ask, answer: [(ask, f"{answer} Besides, you may always come by and")] if n % 2 else
                                      [(ask, answer[:len(answer) * 2 // 3].rsplit(" ", 1)[0] + " the")],
        "too-long": lambda n, ask, answer: [(ask, " ".join(f"{answer} It is the {k}th thing that we tell you about {k * n}." for k in range(24)))],
        "language": lambda n, ask, answer: [(ask, GERMAN[n % 2].format(n=n))],
        "marks": lambda n, ask, answer: [(ask, f"{answer} {('<|im_end|>', '[/INST] Next, please.', '<start_of_turn>user Yes?', '</s>')[n % 4]}")],
        **{f"personal-{kind}": personal(kind) for kind in PERSONAL},
    }


def sown(rows: int, each: int, seed: int) -> tuple[Rows, dict[str, set[int]]]:
    """Rows in mixed order, and rule → places of its faults (among equal rows the later ones)."""
    draw = random.Random(seed)
    good, kinds = clean(rows, draw), faults(draw)
    blocks, here = [], 0
    for rule, spoil in kinds.items():
        for n in range(each):
            blocks.append((rule, spoil(n, *good[here])))
            here += 1
    blocks += [("", [pair]) for pair in good[here:]]
    draw.shuffle(blocks)
    made, places = [], {rule: set() for rule in kinds}
    for rule, pairs in blocks:
        if rule == "near-duplicate":
            places[rule].add(len(made) + 1)
        elif rule == "duplicate":
            places[rule].add(len(made) + 1)
        elif rule == "contradiction":
            places["duplicate"].add(len(made) + 1)
            places[rule].add(len(made) + 2)
        elif rule:
            places[rule].add(len(made))
        made += pairs
    return made, places


def measure(rows: int, each: int, seed: int, folder: Path, tokenizer=None, max_length: int = 600) -> dict[str, tuple[int, int, int]]:
    """Rule → (sown, found of these, found in all)."""
    made, places = sown(rows, each, seed)
    path = folder / "sown.jsonl"
    path.write_text("\n".join(json.dumps({"question": q, "answer": a}) for q, a in made), encoding="utf-8")
    report = check(load(path), 0.1, tokenizer, max_length=max_length)
    found = {problem.rule: set(problem.rows) for problem in report.problems}
    return {rule: (len(wanted), len(wanted & found.get(rule, set())), len(found.get(rule, set()))) for rule, wanted in places.items()
            if tokenizer is not None or rule != "too-long"}


def main() -> None:
    """Print a table: rule, faults sown, recall, precision."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--each", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    from engine.data.render import prepare_tokenizer
    from tests.support.tiny import make_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        figures = measure(asked.rows, asked.each, asked.seed, Path(folder), prepare_tokenizer(make_tokenizer()))
    print(f"{'rule':<16}{'sown':>6}{'recall':>9}{'precision':>11}")
    for rule, (wanted, right, found) in figures.items():
        print(f"{rule:<16}{wanted:>6}{right / wanted:>9.3f}{right / found if found else 0.0:>11.3f}")


if __name__ == "__main__":
    main()
