"""Every sentence that the engine may say to a person has a German one; values are carried over, whatever they are."""

from __future__ import annotations

import ast
import itertools
import json
import re
from pathlib import Path

import pytest

from engine import errors
from engine.errors import StudioError, explain
from engine.specs import TrainSpec
from engine.store.resources import resource
from studio.core import text
from studio.core.text.spoken import spoken, spoken_setting

ROOT = Path(__file__).resolve().parents[3]
ROOMS = ("engine/data", "engine/errors.py", "engine/events.py", "engine/specs", "engine/store", "engine/train", "engine/worker", "engine/bases",
         "engine/generate", "engine/export", "engine/merge", "engine/mix", "engine/checkpoint", "studio/jobs", "studio/core")
SAYS = {name for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, StudioError)} | {
    "Note", "Progress", "Checked", "Unusable", "LeftOut", "bad_line", "damaged"}
NAMED = {"what", "why", "do", "sentence", "stage", "notes", "note", "passed_over", "way_out", "_WAY_OUT",
         "FOREIGN", "goes_on"}
TABLE = json.loads((resource("translations") / "engine" / "de.json").read_text(encoding="utf-8"))
SETTINGS = json.loads((resource("translations") / "settings" / "de.json").read_text(encoding="utf-8"))


def written(node: ast.AST) -> list[str]:
    """What a string expression can be; values are NUL, alternatives all are told."""
    match node:
        case ast.Constant(value=str(said)):
            return [said]
        case ast.JoinedStr():
            return ["".join(parts) for parts in itertools.product(*map(_part, node.values))]
        case ast.IfExp():
            return written(node.body) + written(node.orelse)
        case ast.BinOp(op=ast.Add()):
            return [one + two for one in written(node.left) or ["\0"] for two in written(node.right) or ["\0"]]
    return []


def _part(value: ast.AST) -> list[str]:
    if isinstance(value, ast.Constant):
        return [value.value]
    alternatives = isinstance(value.value, ast.IfExp) and written(value.value.body) and written(value.value.orelse) and written(value.value)
    return alternatives or ["\0"]


def outermost(node: ast.AST):
    if written(node):
        yield node
        return
    for child in ast.iter_child_nodes(node):
        yield from outermost(child)


def sentences(path: Path) -> set[str]:
    """Templates of all that a file says in errors, notes and stages, as they stand in the table."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        strings, least = [], 8
        if isinstance(node, ast.Call):
            name, least = getattr(node.func, "id", getattr(node.func, "attr", "")), 3
            if name in SAYS:
                strings = [*node.args, *(k.value for k in node.keywords if k.arg in ("what", "why", "do", "text", "stage"))]
            elif name == "append" and getattr(node.func.value, "id", "") in NAMED:
                strings = node.args
            elif name == "setdefault" and getattr(node.func.value, "id", "") == "found":
                strings = node.args[1:]
            elif name == "watch":
                strings = node.args[:1]
        elif isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            flat = [t for target in targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
            named = {getattr(t, "id", getattr(t, "attr", "")) for t in flat}
            if named & NAMED or any(isinstance(t, ast.Subscript) and getattr(t.value, "id", "") == "found" for t in flat) and "specs" in path.parts:
                strings = list(outermost(node.value))
        elif isinstance(node, ast.FunctionDef) and node.name in ("_sentence", "notes"):
            strings = [s for back in ast.walk(node) if isinstance(back, ast.Return) and back.value for s in outermost(back.value)]
        for said in (said for string in strings for said in written(string)):
            if sum(map(str.isalpha, said)) >= least and (" " in said.strip() or said[0].isupper()):
                found.add(numbered(said))
    return found


def numbered(said: str) -> str:
    pieces = said.replace("{", "{{").replace("}", "}}").split("\0")
    return "".join(f"{{{n - 1}}}{piece}" if n else piece for n, piece in enumerate(pieces))


@pytest.fixture
def german():
    text.use("de")
    yield
    text.use("en")


@pytest.mark.parametrize("room", ROOMS)
def test_every_sentence_has_a_german_one(room):
    files = [ROOT / room] if room.endswith(".py") else sorted((ROOT / room).rglob("*.py"))
    said = set().union(*map(sentences, files))
    assert (said or room == "studio/core") and not said - TABLE.keys()


def test_every_translation_carries_all_values_over():
    for english, translated in TABLE.items():
        numbers = set(re.findall(r"(?<!\{)\{(\d)\}", english))
        assert set(re.findall(r"(?<!\{)\{(\d)\}", translated)) <= numbers and translated.strip(), english


def test_the_translation_is_found_again_with_its_values(german):
    """Whatever a value is, the sentence is known, and known as itself and not as another."""
    for english, translated in TABLE.items():
        values = [f"Wert-{n}.x" for n in range(6)]
        assert spoken(english.format(*values)) == translated.format(*values), english


def test_values_that_are_sentences_or_numbers_are_german_too(german):
    assert spoken("1,200 question and answer pairs, from the columns Frage and Antwort.") == \
        "1.200 Paare aus Frage und Antwort, aus den Spalten Frage und Antwort."
    assert spoken("3 rows were left out because the answer is empty (first: line 7).") == \
        "3 Zeilen wurden ausgelassen: die Antwort ist leer (zuerst: Zeile 7)."
    assert spoken("27 examples from 4 files: 3 conversations, 24 question and answer pairs.") == \
        "27 Beispiele aus 4 Dateien: 3 Gespräche, 24 Paare aus Frage und Antwort."
    assert spoken("5 conversations, from the columns conversations and system.") == "5 Gespräche, aus den Spalten conversations und system."
    assert spoken("a.csv was passed over: Line 2 of a.csv cannot be read. It has more than 9 characters.") == \
        "a.csv wurde übergangen: Zeile 2 von a.csv ist nicht zu lesen. Sie hat mehr als 9 Zeichen."
    assert spoken("a.xlsx was passed over: The file a.xlsx is damaged or is not what its name says.") == \
        "a.xlsx wurde übergangen: Die Datei a.xlsx ist beschädigt oder nicht das, was ihr Name sagt."


def test_several_sentences_are_translated_one_by_one_and_strange_ones_stay(german):
    assert spoken("Check its name. Frobnicate the spline. Try again later.") == \
        "Prüfe ihren Namen. Frobnicate the spline. Versuche es später noch einmal."
    assert spoken("") == "" and spoken("Nobody knows this.") == "Nobody knows this."


@pytest.mark.parametrize("said", ["“x” was y: z (w) ", "a.csv was passed over: ", "Frobnicate the spline. ", "a b ", "1, 2; ",
                                  "<p>foo, bar. baz: qux</p>"])
def test_a_long_message_of_a_stranger_stays_and_keeps_no_window_waiting(german, said):
    """By regular expressions some of these took minutes, in the window's own thread."""
    for times in (3990 // len(said), 10_000):
        assert spoken(said * times).split()[-1] == said.split()[-1]


def test_every_setting_of_a_training_is_german():
    from dataclasses import fields

    said = {field.metadata[part] for field in fields(TrainSpec) for part in ("label", "help") if field.metadata.get(part)}
    assert len(said) > 40 and not said - TABLE.keys()
    assert not {field.metadata["unit"] for field in fields(TrainSpec) if field.metadata.get("unit")} - SETTINGS.keys()


def test_what_a_setting_is_called_is_german_but_a_thing_of_that_name_stays(german):
    assert spoken_setting("Group") == "Gruppe" and spoken_setting("Learning speed") == "Lerngeschwindigkeit"
    assert spoken_setting("Nobody knows this.") == "Nobody knows this." and spoken_setting("") == ""
    assert spoken("1,200 question and answer pairs, from the columns Group and Kind.").endswith("Group und Kind.")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError(), PermissionError(13, "no", "/x/y.txt"), KeyboardInterrupt(),
                                   ZeroDivisionError()])
def test_what_every_computer_can_run_into_is_german(german, error):
    told = explain(error)
    for part in (told.what, told.do):
        assert not part or spoken(part) != part


def test_english_windows_say_what_the_engine_says():
    text.use("en")
    assert spoken("The disk is full.") == "The disk is full."


def test_numbers_in_the_engines_sentences_are_written_as_here(german):
    assert spoken("340,000 question and answer pairs, from the columns Frage and Antwort.").startswith("340.000 Paare aus Frage und Antwort")
    assert "2,1 GB" in spoken("It would unpack to 2.1 GB, as files made to fill a computer do.")
    assert "v1.2.3" in spoken("The file v1.2.3 does not exist.")


def test_what_was_said_apart_is_translated_apart(german):
    """A sentence that ends in a value does not swallow the next one."""
    assert spoken("Found “A”; the partner of “A” is missing.", "", "Undo the last change.") == (
        f"{spoken('Found “A”; the partner of “A” is missing.')} {spoken('Undo the last change.')}")
    assert "Undo" not in spoken("Found “A”; the partner of “A” is missing.", "Undo the last change.")
