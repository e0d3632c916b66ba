"""The sample data sets teach what they promise: one manner of speaking, one set of facts that nowhere contradicts itself."""

import json
import re
from pathlib import Path

import pytest

from engine.data.shapes import load
from engine.data.split import split
from engine.specs import TrainSpec

SAMPLES = Path(__file__).parents[1] / "resources" / "samples"
INDEX = json.loads((SAMPLES / "samples.json").read_text("utf-8"))
GREETING, SIGN_OFF = "Ahoy, friend! ", " Fair winds, the Keeper."
BOTH = pytest.mark.parametrize("which", ["style", "shop"])

# What an answer is about (every word must stand in it) → what it must then say.
SHOP_FACTS = [
    ("rye loaf costs", "$5.40"), ("one rye loaf", "$5.40"), ("sourdough costs", "$6.20"), ("sourdough loaf", "$6.20"),
    ("walnut bread costs", "$6.80"), ("walnut bread contains", "traces are possible"),
    ("cinnamon bun costs", "$2.90"), ("cheese scone", "$2.50"), ("apple cake", "$3.80"), ("birthday cake costs", "$34"),
    ("birthday cake order", "three days ahead"), ("cup coffee", "$2.20"), ("breakfast box", "$9.50"),
    ("deliver Wednesday", "Wednesday and Friday"), ("deliver Friday", "Wednesday and Friday"),
    ("delivery days", "Wednesday and Friday"), ("we deliver miles", "five miles from Marrowby"),
    ("delivery free", "$25"), ("street", "14 Fennel Street in Marrowby"), ("clock opposite", "green"), ("phone number", "555-0142"),
    ("555", "555-0142"), ("write to", "hello@pennywhistle.example"), ("Saturday open from", "8 in the morning to 2 in the afternoon"),
    ("Tuesday to Friday", "7 in the morning"), ("Tuesday to Friday", "6 in the evening"), ("we closed", "Sunday and Monday|Monday and Sunday"),
    ("Otto", "1987"), ("1987", "Otto Quill, Marta's grandfather"), ("Jonah", "Jonah Reed"), ("back receipt", "money back"),
    ("gluten", "Thursday"), ("vegan", "rye loaf and the seed rolls"), ("cash", "cards|by card"),
    ("parking", "six cars"), ("park", "behind the bakery"), ("bus", "bus 7"), ("ramp", "side door"), ("dogs", "terrace"),
    ("seats", "twelve seats inside"), ("vouchers", "for $10 and $20"), ("loyalty card", "every tenth loaf is free"),
    ("half price", "in the basket by the door"), ("baking class", "$28"), ("baking class", "first Saturday of the month at 3"),
    ("flour", "Hollow Mill"), ("every child", "for free"), ("mini roll", "for free"),
]


def pairs(which: str) -> list[tuple[str, str]]:
    return [tuple(m["content"] for m in row.messages) for row in load(SAMPLES / INDEX[which]["file"]).rows]


def words(text: str) -> set[str]:
    return set(re.findall(r"[\w$@.:-]+", text.casefold()))


def likeness(a: str, b: str) -> float:
    """Shared words as a part of all words of both: 1 is the same, 0 has nothing in common."""
    return len(words(a) & words(b)) / len(words(a) | words(b))


@BOTH
def test_it_is_read_whole_and_without_complaint(which):
    file = SAMPLES / INDEX[which]["file"]
    data = load(file)
    lines = file.read_bytes().decode("utf-8").strip().split("\n")
    assert data.notes == [] and sorted(data.roles.values()) == ["answer", "question"]
    assert len(data.rows) == len(lines) - (file.suffix == ".csv") == INDEX[which]["rows"]
    assert 60 <= len(data.rows) <= 200


def test_both_readers_are_shown():
    assert {Path(INDEX[which]["file"]).suffix for which in ("style", "shop")} == {".jsonl", ".csv"}


@BOTH
def test_no_question_is_asked_twice(which):
    questions = [q for q, _ in pairs(which)]
    assert len({" ".join(sorted(words(q))) for q in questions}) == len(questions)


@BOTH
def test_every_question_and_answer_is_clean_text(which):
    for text in (text for pair in pairs(which) for text in pair):
        assert text == " ".join(text.split()) and text[-1] in ".?!" and text[0].isupper(), text


def test_no_two_answers_of_the_keeper_are_alike():
    answers = [a.removeprefix(GREETING).removesuffix(SIGN_OFF) for _, a in pairs("style")]
    alike = [(a, b) for i, a in enumerate(answers) for b in answers[:i] if likeness(a, b) > 0.5]
    assert alike == []


def test_the_keeper_always_greets_signs_off_and_is_brief():
    for _, answer in pairs("style"):
        assert answer.startswith(GREETING) and answer.endswith(SIGN_OFF)
        assert 12 <= len(answer.split()) <= 60, answer
        assert answer.count("Ahoy") == answer.count("Fair winds") == 1


def test_the_shop_answers_briefly_and_in_its_own_voice():
    for _, answer in pairs("shop"):
        assert 4 <= len(answer.split()) <= 30, answer
        assert "Ahoy" not in answer and "Keeper" not in answer


@pytest.mark.parametrize("about, said", SHOP_FACTS)
def test_the_shop_never_contradicts_itself(about, said):
    concerned = [a for _, a in pairs("shop") if all(re.search(rf"(?i)\b{word}", a) for word in about.split())]
    assert concerned, f"no answer speaks of {about}"
    for answer in concerned:
        assert any(choice in answer for choice in said.split("|")), answer


def test_every_price_belongs_to_a_listed_fact():
    told = {price for _, a in pairs("shop") for price in re.findall(r"\$\d+(?:\.\d\d)?", a)}
    listed = {price for _, said in SHOP_FACTS for price in re.findall(r"\$\d+(?:\.\d\d)?", said)}
    assert told - listed == {"$3"}         # delivery below $25


def test_the_keeper_states_no_facts_of_the_shop():
    facts = ("Pennywhistle", "Marrowby", "Fennel", "Quill", "Jonah", "Otto", "Hollow Mill", "$")
    assert not [a for _, a in pairs("style") if any(fact in a for fact in facts)]


def fact(answer: str) -> str:
    """The sentence that matters, without greeting and good wishes: the longest one."""
    return max(re.split(r"(?<=[.!?]) ", answer), key=len)


def test_what_is_held_out_was_told_in_other_words():
    learned, held = split(load(SAMPLES / INDEX["shop"]["file"]).rows, TrainSpec("b", "d", "o").holdout)
    told = [fact(row.messages[1]["content"]) for row in learned]
    for row in held:
        asked = fact(row.messages[1]["content"])
        assert max(likeness(asked, other) for other in told) >= 0.5, f"nothing learned tells: {asked}"


@BOTH
def test_pinned_questions_are_new_to_the_adapter(which):
    taught = {question.casefold() for w in ("style", "shop") for question, _ in pairs(w)}
    prompts = INDEX[which]["prompts"]
    assert 3 <= len(prompts) <= 4 and not taught & {p.casefold() for p in prompts + INDEX["mix"]["prompts"]}


@BOTH
def test_expected_words_are_words_that_are_taught(which):
    answers = [a for _, a in pairs(which)]
    assert len(INDEX[which]["expect"]) == len(INDEX[which]["prompts"])
    for expected in INDEX[which]["expect"]:
        assert any(all(word in a for word in expected) for a in answers), expected


def test_the_mix_expects_words_of_both():
    mix, keeper, shop = INDEX["mix"], *(" ".join(a for _, a in pairs(w)) for w in ("style", "shop"))
    assert set(mix["strengths"]) == {"style", "shop"} and len(mix["prompts"]) == len(mix["expect"]) == 3
    for expected in mix["expect"]:
        assert any(w in keeper and w not in shop for w in expected) and any(w in shop and w not in keeper for w in expected)


@BOTH
def test_the_settings_make_a_sound_plan(which):
    entry = INDEX[which]
    spec = TrainSpec(base="base", data=entry["file"], out=entry["name"], prompts=entry["prompts"], **entry["settings"])
    assert spec.problems() == {}


def test_the_licence_stands_beside_the_data():
    assert INDEX["licence"] == "CC0-1.0"
    assert "CC0-1.0" in (SAMPLES / "LICENSE").read_text("utf-8") and "CC0-1.0" in (SAMPLES / "README.md").read_text("utf-8")


def test_the_readme_shows_every_pinned_question():
    text = (SAMPLES / "README.md").read_text("utf-8")
    assert not [p for part in ("style", "shop", "mix") for p in INDEX[part]["prompts"] if p not in text]
    for which in ("style", "shop"):
        assert f"{INDEX[which]['rows']} rows" in text and INDEX[which]["file"] in text
