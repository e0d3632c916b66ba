"""Every rule finds what was sown and little else; every fix mends what it was offered for, and the file stays as it is."""

import json
from collections import Counter

import pytest

from engine.data.lint import lint
from engine.data.shapes import load
from engine.specs import Edit, LintData
from tests.bench.lint import LANGUAGES, measure, strict_tokenizer

GOOD = [(f"What does item {n} cost?", f"Item {n} costs {n + 3} euros, and you can have it with this bag.") for n in range(20)]
FAULTY = {
    "duplicate": [GOOD[0]],
    "near-duplicate": [("Which of all the good things in your shop do you like the most?", "The old oak table by the window at the back, for sure."),
                       ("Which of all the good things in your shop do you like the most?", "The old oak table by the window at the back, sure.")],
    "contradiction": [GOOD[1], ("What does item 1 cost?", "Item 1 costs 99 euros, and you can have it with this bag.")],
    "empty": [("Are you open?", "N/A")],
    "cut": [("Where are you?", "We are in the old town, next to the")],
    "language": [("Und auf Deutsch?", "Das ist nicht so, aber wir haben noch ein anderes für Sie.")],
    "personal-mail": [("Your address?", "Write to ann@example.org, please.")],
    "personal-iban": [("Where do I pay?", "To DE89 3704 0044 0532 0130 00, please.")],
    "personal-key": [("The password?", "It is sk-proj-a8Kd93jfQwpeoX71mNzL55.")],
    "marks": [("Bye?", "Good bye.<|im_end|>")],
}


def write(path, pairs):
    path.write_text("\n".join(json.dumps({"question": q, "answer": a}) for q, a in pairs), encoding="utf-8")
    return path


def found(path, edits=()):
    return {problem.rule: problem for problem in lint(LintData(str(path), edits=list(edits))).problems}


def test_good_rows_have_no_problem(tmp_path):
    assert found(write(tmp_path / "d.jsonl", GOOD)) == {}


@pytest.mark.parametrize("rule", FAULTY)
def test_every_fix_mends_its_problem_and_leaves_the_file(rule, tmp_path):
    path = write(tmp_path / "d.jsonl", GOOD + FAULTY[rule])
    before = path.read_bytes()
    problem = found(path)[rule]
    assert problem.count >= 1 and problem.fixes and problem.sentence and len(problem.rows) == len(problem.evidence)
    for fix in problem.fixes:
        assert rule not in found(path, fix.edits), fix.name
        assert all(Edit.from_dict(edit.to_dict()).check() == edit for edit in fix.edits)      # as it is kept beside the plan
        assert len(load(path, edits=fix.edits).rows) >= len(GOOD) - 1                          # no fix takes what is good
    assert path.read_bytes() == before


def test_personal_data_are_masked_in_what_is_said_about_them(tmp_path):
    problem = found(write(tmp_path / "d.jsonl", GOOD + FAULTY["personal-mail"]))["personal-mail"]
    assert "ann@" not in json.dumps(problem.to_dict()) and "[e-mail]" in problem.evidence[0]


def test_edits_name_rows_wherever_they_stand(tmp_path):
    """A dropped row stays dropped when rows are added before it; a change whose row is gone is told."""
    key = load(write(tmp_path / "d.jsonl", GOOD)).rows[3].key
    edits = [Edit("drop", [key])]
    rows = load(write(tmp_path / "d.jsonl", [("New?", "Quite new.")] + GOOD), edits=edits).rows
    assert len(rows) == 20 and all(GOOD[3][1] != row.messages[-1]["content"] for row in rows)
    assert "no longer finds" in " ".join(load(write(tmp_path / "d.jsonl", GOOD[5:]), edits=edits).notes)


def test_a_fix_leaves_every_other_row_on_its_side_of_the_split(tmp_path):
    from engine.data.split import split

    path = write(tmp_path / "d.jsonl", [(f"Question {n}?", f"Mail a{n}@example.org") for n in range(200)])
    sides = [{row.key for row in split(load(path, edits=edits).rows, 0.1)[1]} for edits in ((), [Edit("mask", [], ["mail"])])]
    assert sides[0] == sides[1]


def test_sown_faults_are_found(tmp_path):
    """The floor of `tests/bench/lint.py`: nine of ten faults, and nine of ten reports right, for every rule, in three languages together."""
    tokenizer, total = strict_tokenizer(), Counter()
    for lang in LANGUAGES:
        for rule, figures in measure(lang, 200, 3, 3, tmp_path, tokenizer).items():
            total.update({(rule, n): number for n, number in enumerate(figures)})
    for rule in {rule for rule, _ in total}:
        sown, right, all_ = (total[rule, n] for n in range(3))
        assert right >= 0.9 * sown and right >= 0.9 * all_, (rule, sown, right, all_)
