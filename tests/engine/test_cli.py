"""The headless twin: its flags are the specs, its errors are sentences, Ctrl+C loses nothing."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies

from engine import cli, events, specs
from engine.errors import BadData
from engine.store.home import Home
from engine.terminal import Terminal, duration, table

ROOT = Path(__file__).parents[2]
FAST = ["--passes", "1", "--learning-rate", "0.02", "--rows-per-step", "6", "--precision", "float32", "--method-config", '{"r": 4}']


@pytest.fixture
def home(studio_home):
    return Home(studio_home).prepare()


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "answers.csv"
    file.write_text("question,answer\n" + "".join(f"What is {n} and {n}?,It is {2 * n}.\n" for n in range(40)))
    return str(file)


@pytest.fixture
def adapter(home, base_folder, data):
    """A taught adapter called ``sums`` in the library."""
    assert cli.main(["train", "--base", str(base_folder), "--data", data, "--out", "sums", *FAST]) == 0
    return home.adapters / "sums"


def run(capsys, *argv):
    """Exit code, what was printed, what was complained."""
    code = cli.main([str(a) for a in argv])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


# --- flags are the specs ---

numbers = strategies.floats(-1e6, 1e6, allow_nan=False)
words = strategies.text(strategies.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=8)
settings_of = {"float": numbers, "int": strategies.integers(-9, 9**9), "bool": strategies.booleans(), "str": words,
               "dict": strategies.dictionaries(words, strategies.integers()), "list[str]": strategies.lists(words, min_size=1, max_size=3)}


def a_value(field):
    return strategies.sampled_from(field.metadata["choices"]) if field.metadata.get("choices") else settings_of[field.type]


def as_flag(name, value):
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, list):
        return [f"{flag}={item}" for item in value]
    return [f"{flag}={json.dumps(value) if isinstance(value, dict) else value}"]


@settings(max_examples=100, deadline=None)
@given(strategies.fixed_dictionaries({f.name: a_value(f) for f in dataclasses.fields(specs.TrainSpec) if f.name != "edits"}))
def test_every_setting_can_be_said_as_a_flag(values):
    arguments = cli.parser().parse_args(["train", *(part for name, value in values.items() for part in as_flag(name, value))])
    assert cli._spec_data(arguments, specs.TrainSpec) == values


def test_flags_override_the_plan_and_silence_leaves_it(tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"kind": "train", "data": "a.csv", "passes": 7.0, "seed": 5}))
    arguments = cli.parser().parse_args(["train", str(plan), "--passes", "2"])
    assert cli._spec_data(arguments, specs.TrainSpec) == {"kind": "train", "data": "a.csv", "passes": 2.0, "seed": 5}


@pytest.mark.parametrize("text, name, strength", [("shop", "shop", 1.0), ("shop=0.5", "shop", 0.5), ("a=b", "a=b", 1.0), ("a=b=-2", "a=b", -2.0)])
def test_a_strength_is_the_number_after_the_last_equals_sign(home, text, name, strength):
    (entry,) = cli.stack_of([text], home)
    assert (Path(entry.adapter).name, entry.strength) == (name, strength)


# --- errors are sentences ---

@pytest.mark.parametrize("argv, code, sentence", [
    (["train", "--data", "nowhere.csv"], 1, "is not there"),
    (["train"], 2, "Which examples?"),
    (["train", "--data", "nowhere.csv", "--passes", "-1"], 2, "must be at least"),
    (["train", "nowhere.json"], 2, "cannot be read"),
    (["train", "--resume", "no-such-run"], 1, "no run called"),
    (["export"], 2, "Which adapters?"),
    (["merge", "--adapter", "ghost"], 1, "does not exist"),
    (["chat", "--adapter", "ghost", "--ask", "x"], 1, "does not exist"),
    (["inspect", "nowhere"], 1, "is not there")])
def test_an_error_is_a_sentence_and_an_exit_code(capsys, home, argv, code, sentence):
    got, out, err = run(capsys, *argv)
    assert got == code and sentence in err and "Traceback" not in err + out


@pytest.mark.parametrize("argv", [[], ["dance"], ["train", "--passes", "many"], ["train", "--method-config", "[]"]])
def test_wrong_use_is_exit_code_two(argv, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 2


def test_an_empty_file_names_the_way_out_and_leaves_no_adapter(capsys, home, base_folder, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    code, _, err = run(capsys, "train", "--base", base_folder, "--data", tmp_path / "empty.csv", "--out", "x")
    assert code == 1 and "empty" in err and "→" in err and not (home.adapters / "x").exists()


def test_nothing_heavy_is_imported_until_it_is_needed():
    code = "import sys; from engine import cli; cli.parser(); sys.exit(bool({'torch', 'transformers', 'numpy', 'PySide6'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# --- the whole way, tiny ---

def test_teach_inspect_talk_bake(capsys, home, adapter, base_folder, data):
    printed = capsys.readouterr().out
    before, after = map(float, re.search(r"unseen examples: ([\d.]+) before, ([\d.]+) after", printed).groups())
    assert after < before and "chat --adapter" in printed

    code, out, _ = run(capsys, "inspect", "sums")
    assert code == 0 and "LORA" in out
    code, out, _ = run(capsys, "chat", "--adapter", "sums=0.5", "--ask", "What is 2 and 2?", "--longest", "4")
    assert code == 0
    code, out, _ = run(capsys, "merge", "--adapter", "sums", "--out", "baked")
    assert code == 0 and "Written" in out
    code, out, _ = run(capsys, "inspect", home.exports / "baked", "--json")
    assert json.loads(out)["Family"] == "llama"
    code, out, _ = run(capsys, "inspect", data)
    assert code == 0 and "40 question" in out
    code, out, _ = run(capsys, "inspect", adapter / "adapter_model.safetensors")
    assert code == 0 and "lora_A" in out


def test_a_learning_speed_is_found_and_nothing_is_kept(capsys, home, base_folder, data):
    code, out, _ = run(capsys, "find-speed", "--base", base_folder, "--data", data, "--out", "never", *FAST)
    speed = float(re.search(r"Learning speed: ([\d.e-]+) ", out).group(1))
    assert code == 0 and 1e-5 < speed < 0.1 and f"--learning-rate {speed:g}" in out and not (home.adapters / "never").exists()


def test_time_is_added_and_speed_halved_where_a_run_goes_on(capsys, home, monkeypatch):
    folder = cli.RunFolder.create(home.runs / "train-x", specs.TrainSpec(base="b", data="d", out="o"))
    monkeypatch.setattr(cli, "_job", lambda *_: (0, {}))
    assert run(capsys, "train", "--resume", "train-x", "--more", "1.5", "--half-speed")[0] == 0
    assert (folder.extended, folder.slowed) == (1.5, 1)
    (folder.path / "outcome.json").write_text(json.dumps(events.Finished({}).to_dict()))
    for refused, exit_code, says in ((["--resume", "train-x", "--more", "1"], 1, "finished already"), (["--half-speed"], 2, "--resume")):
        code, _, error = run(capsys, "train", *refused)
        assert code == exit_code and says in error
    assert folder.extended == 1.5


def test_an_export_is_verified(capsys, home, adapter):
    code, out, _ = run(capsys, "export", "--adapter", "sums=0.75", "--out", "proved")
    assert code == 0 and "Verified: " in out and "✓" in out and (home.exports / "proved" / "config.json").exists()


def test_events_as_lines_of_json(capsys, home, base_folder, data):
    code, out, _ = run(capsys, "train", "--json", "--base", base_folder, "--data", data, "--out", "sums", *FAST)
    told = [events.from_dict(json.loads(line)) for line in out.splitlines()]
    assert code == 0 and isinstance(told[-1], events.Finished) and [e.seq for e in told] == list(range(1, len(told) + 1))
    assert told == list(cli.RunFolder(home.runs / "train-sums").events())


def test_a_chat_obeys_its_commands(capsys, home, adapter, monkeypatch):
    lines = iter(["/strength", "/strength 0.25", "/strength sums 2", "/strength 2 1", "/strength 1 99", "/base", "/stack",
                  "What is 2 and 2?", "/base", "/dance", "/new", "/help", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(lines))
    capsys.readouterr()
    code, out, _ = run(capsys, "chat", "--adapter", "sums", "--longest", "3")
    assert code == 0 and next(lines, None) is None
    assert out.count("Which strength?") == 2 and "may be at most 10" in out and "sums  2" in out
    assert "There is no question yet" in out and "/dance is not a command" in out


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_control_c_saves_and_the_way_on_gives_the_same_bytes(home, adapter, base_folder, data, capsys):
    argv = [sys.executable, "-m", "engine.cli", "train", "--base", str(base_folder), "--data", data, "--out", "broken", *FAST]
    program = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    guard = threading.Timer(120, program.kill)
    guard.start()
    printed = []
    for line in program.stdout:
        printed.append(line)
        if "Learning" in line:
            program.send_signal(signal.SIGINT)
            break
    printed += program.stdout.readlines()
    guard.cancel()
    program.stdout.close()
    assert program.wait() == cli.PAUSED, printed
    resume = re.search(r"adapter-studio (train --resume \S+)", "".join(printed)).group(1).split()
    assert cli.main(resume) == 0
    both = [(home.adapters / name / "adapter_model.safetensors").read_bytes() for name in ("sums", "broken")]
    assert both[0] == both[1]


# --- the terminal ---

class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_living_line_is_rewritten_and_lines_that_stay_are_whole():
    screen = Screen()
    terminal = Terminal(screen)
    for done in range(5):
        terminal.show(events.Progress("Working", done, 4, "rows", 3.0))
    terminal.show(events.Evaluated(3, 1.5, 8, True))
    terminal.show(events.Finished({}))
    *_, last = screen.getvalue().split("\r")
    assert screen.getvalue().count("\n") == 1 and "████" in screen.getvalue()
    assert last == "  error on unseen examples 1.500 at step 3 (best so far)\n"


def test_without_a_terminal_progress_is_a_few_lines():
    out = io.StringIO()
    terminal = Terminal(out)
    for done in range(1001):
        terminal.show(events.Progress("Working", done, 1000, "rows"))
    assert out.getvalue() == "  Working 0% 0 of 1000 rows\n  Working 100% 1000 of 1000 rows\n"


@given(strategies.integers(0, 10**6))
def test_a_duration_says_what_it_is(seconds):
    factors = {"h": 3600, "min": 60, "s": 1}
    said = sum(int(number) * factors[unit] for number, unit in re.findall(r"(\d+) (h|min|s)", duration(seconds)))
    assert seconds - 60 < said <= seconds if seconds >= 3600 else said == seconds


@given(strategies.lists(strategies.lists(strategies.from_regex(r"[a-z0-9.]{0,6}", fullmatch=True), min_size=3, max_size=3), max_size=4))
def test_a_table_keeps_its_columns(rows):
    head = ["one", "two", "three"]
    lines = table(rows, head).split("\n")
    places = [m.start() for m in re.finditer(r"-+", lines[1])] + [200]
    cells = [[line[a:b].strip() for a, b in zip(places, places[1:], strict=False)] for line in [lines[0], *lines[2:]]]
    assert cells == [head, *rows]


def test_errors_show_what_why_and_what_to_do(capsys, home, monkeypatch):
    def broken(*_):
        raise BadData("The file is empty.", "It has no rows.", "Choose another one.", details="stack trace")

    monkeypatch.setattr(cli, "_inspect", broken)
    assert run(capsys, "inspect", "x") == (1, "", "The file is empty.\nIt has no rows.\n→ Choose another one.\n")
    monkeypatch.setenv("ADAPTER_STUDIO_DETAILS", "1")
    assert run(capsys, "inspect", "x")[2].endswith("stack trace\n")
