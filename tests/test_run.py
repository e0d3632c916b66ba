"""The two commands: what they decide. (Nothing is installed here; the commands themselves are how these tests were started.)"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMI = "| NVIDIA-SMI 570.00    Driver Version: 570.00    CUDA Version: {}     |"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A fresh copy of the module, whose folder is an empty one with a project file."""
    spec = importlib.util.spec_from_file_location("run_under_test", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = tmp_path / "clone"
    root.mkdir()
    (root / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    for name, path in {"ROOT": root, "VENV": root / ".venv", "BEGUN": root / ".venv/begun", "STAMP": root / ".venv/ready.json",
                       "LOG": root / ".venv/log"}.items():
        monkeypatch.setattr(module, name, path)
    return module


def test_it_needs_nothing_but_python():
    allowed = set(sys.stdlib_module_names)
    tree = ast.parse((ROOT / "run.py").read_text(encoding="utf-8"))
    names = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names <= allowed


def test_an_old_python_can_at_least_read_it():
    """Its first duty there is one clear sentence, so its syntax stays that of Python 3.8."""
    ast.parse((ROOT / "run.py").read_text(encoding="utf-8"), feature_version=(3, 8))


# --- which PyTorch -------------------------------------------------------------------------------

@pytest.mark.parametrize(("system", "cuda", "kfd", "build"), [
    ("Linux", "", False, "cpu"), ("Linux", "13.0", False, "default"), ("Linux", "13.2", False, "default"), ("Linux", "12.9", False, "cu128"),
    ("Linux", "12.8", False, "cu128"), ("Linux", "12.6", False, "cu126"), ("Linux", "12.2", False, "cpu"), ("Linux", "", True, "rocm"),
    ("Linux", "12.8", True, "cu128"), ("Windows", "", False, "default"), ("Windows", "13.0", False, "cu130"), ("Windows", "12.8", False, "cu128"),
    ("Darwin", "", False, "default"), ("Darwin", "", True, "default")])
def test_the_build_follows_the_machine(run, system: str, cuda: str, kfd: bool, build: str):
    chosen, sentence = run.choose_torch(system, SMI.format(cuda) if cuda else "", kfd)
    assert chosen == build and sentence.startswith("PyTorch")


def test_a_driver_that_says_nothing_is_no_card(run):
    for text in ("", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "CUDA Version: N/A"):
        assert run.driver_cuda(text) is None
        assert run.choose_torch("Linux", text)[0] == "cpu"


def test_an_old_driver_is_told_why_its_card_rests(run):
    assert "12.2" in run.choose_torch("Linux", SMI.format("12.2"))[1]


@pytest.mark.parametrize("system", ["Linux", "Windows", "Darwin"])
def test_the_person_has_the_last_word(run, system: str):
    assert run.choose_torch(system, SMI.format("13.0"), True, "cpu")[0] == "cpu"


def test_a_machine_without_card_never_gets_cuda_by_surprise(run):
    """Every attempt names the CPU build, or looks only at wheels that lie ready, or asks an index that has no other."""
    attempts = run.torch_attempts("cpu")
    for attempt in attempts:
        assert any("+cpu" in word for word in attempt) or "--no-index" in attempt
    assert attempts[0] == [f"torch=={run.TORCH}+cpu"], "what pip finds by itself comes first"
    assert attempts[-1][-1].endswith("/cpu")


def test_a_card_without_its_build_falls_back_to_the_processor(run):
    assert run.torch_attempts("rocm")[-1] == run.torch_attempts("cpu")[-1]


def test_nvidia_smi_that_hangs_or_is_missing_is_no_card(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    assert run.nvidia_smi() == ""
    monkeypatch.setattr(run.shutil, "which", lambda name: "/nonexistent/nvidia-smi")
    assert run.nvidia_smi() == ""


# --- is it set up? -------------------------------------------------------------------------------

def stamped(run, extras: list[str], **changed) -> dict:
    run.venv_python().parent.mkdir(parents=True, exist_ok=True)
    run.venv_python().touch()
    key = run.machine_key()
    run.STAMP.write_text(json.dumps({"key": key | changed, "extras": extras}), encoding="utf-8")
    return key


def test_a_finished_set_up_is_recognised(run):
    key = stamped(run, [])
    assert run.is_ready(run.STAMP, key, "", run.venv_python())
    assert not run.is_ready(run.STAMP, key, "test", run.venv_python()), "the tests need more"
    key = stamped(run, ["test"])
    assert run.is_ready(run.STAMP, key, "test", run.venv_python()) and run.is_ready(run.STAMP, key, "", run.venv_python())


def test_a_changed_project_is_set_up_again(run):
    stamped(run, [])
    (run.ROOT / "pyproject.toml").write_text("[project]\nname = 'x'\n", encoding="utf-8")
    assert not run.is_ready(run.STAMP, run.machine_key(), "", run.venv_python())


@pytest.mark.parametrize("changed", [{"recipe": 0}, {"python": [3, 9]}, {"card": [True, False]}, {"torch": "cu126"}, {"folder": "/elsewhere"}])
def test_another_machine_is_set_up_again(run, changed: dict):
    key = stamped(run, [], **changed)
    assert not run.is_ready(run.STAMP, key, "", run.venv_python())


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"key": 1}'])
def test_a_damaged_stamp_is_no_stamp(run, text: str):
    key = stamped(run, [])
    run.STAMP.write_text(text, encoding="utf-8")
    assert not run.is_ready(run.STAMP, key, "", run.venv_python())


def test_an_environment_whose_python_is_gone_is_not_ready(run):
    key = stamped(run, [])
    run.venv_python().unlink()
    assert not run.is_ready(run.STAMP, key, "", run.venv_python())


def test_an_interrupted_set_up_is_thrown_away_and_begun_again(run):
    run.VENV.mkdir()
    run.BEGUN.touch()
    (run.VENV / "half").touch()
    run.make_venv()
    assert run.venv_python().exists() and not (run.VENV / "half").exists() and run.BEGUN.exists()
    assert not list(run.ROOT.glob(".venv.old-*"))


def test_a_folder_that_someone_else_made_is_never_thrown_away(run):
    run.VENV.mkdir()
    (run.VENV / "letters").touch()
    with pytest.raises(run.Stop, match="Remove it"):
        run.make_venv()
    assert (run.VENV / "letters").exists()


def test_the_stamp_is_written_last_and_only_if_all_went_well(run, monkeypatch: pytest.MonkeyPatch, capsys):
    calls: list[tuple] = []

    def pip(*words: str) -> bool:
        assert not run.STAMP.exists()
        calls.append(words)
        return "-e" not in words

    def make_venv() -> None:
        run.VENV.mkdir(exist_ok=True)
        run.LOG.write_text("OSError: [Errno 28] No space left on device", encoding="utf-8")

    monkeypatch.setattr(run, "make_venv", make_venv)
    monkeypatch.setattr(run, "pip", pip)
    monkeypatch.setenv("ADAPTER_STUDIO_TORCH", "cpu")
    with pytest.raises(run.Stop, match="disk is full"):
        run.set_up("test")
    assert not run.STAMP.exists()
    assert any("--no-deps" in words and f"torch=={run.TORCH}+cpu" in words for words in calls)
    monkeypatch.setattr(run, "pip", lambda *words: bool(calls.append(words)) or True)
    run.venv_python().parent.mkdir(parents=True, exist_ok=True)
    run.venv_python().touch()
    run.set_up("test")
    assert run.is_ready(run.STAMP, run.machine_key(), "test", run.venv_python())
    done = len(calls)
    run.set_up("")
    assert len(calls) == done, "what is ready is not touched"
    capsys.readouterr()


@pytest.mark.skipif(os.name == "nt", reason="waits on two pipes at once")
def test_two_at_once_take_turns(run):
    """The second one says so and waits while the first, or a program that it started, still works on the folder; then it goes on."""
    import selectors

    code = (f"import importlib.util as u, subprocess, sys, pathlib\ns = u.spec_from_file_location('r', {str(ROOT / 'run.py')!r})\n"
            f"r = u.module_from_spec(s); s.loader.exec_module(r); r.ROOT = pathlib.Path({str(run.ROOT)!r})\n"
            "work = 'import sys; print(\"mine\", flush=True); sys.stdin.read(1)'\n"
            "with r.only_one(): subprocess.run([sys.executable, '-c', work], pass_fds=r.HELD)\n")
    both = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    heard: dict = {}
    with selectors.DefaultSelector() as selector:
        for process in both:
            selector.register(process.stdout, selectors.EVENT_READ, process)
        while len(heard) < 2:
            for ready, _ in selector.select(timeout=60) or pytest.fail("nobody spoke"):
                heard.setdefault(ready.data, ready.fileobj.readline().strip())
        owner, waiting = sorted(both, key=lambda process: heard[process], reverse=True)
        assert heard[owner] == "mine" and heard[waiting].startswith("Another")
        owner.kill()                       # its child lives on and still holds the folder
        owner.wait()
        selector.unregister(owner.stdout)
        assert not selector.select(timeout=1.0), "the folder was taken from a program that still works on it"
        owner.stdin.close()                # now the child ends too
        assert waiting.stdout.readline().strip() == "mine"
    waiting.communicate("x", timeout=60)
    owner.stdout.close()
    assert waiting.returncode == 0


# --- the libraries of the system, the screen -----------------------------------------------------

def test_only_missing_libraries_are_asked_for_by_their_packages(run):
    missing = run.missing_libraries(False, can_load=lambda name: name not in ("libGL.so.1", "libEGL.so.1"))
    assert missing == ["libGL.so.1", "libEGL.so.1"]
    has = {"apt": "apt-get", "dnf": "dnf", "pacman": "pacman"}
    lines = {name: run.install_line(missing, has=lambda program, wanted=program: program == wanted) for name, program in has.items()}
    assert lines["apt"] == ["apt-get", "install", "-y", "--no-install-recommends", "libgl1", "libegl1"]
    assert lines["dnf"][-2:] == ["mesa-libGL", "mesa-libEGL"]
    assert lines["pacman"][-1:] == ["libglvnd"], "one package for both is named once"
    assert run.install_line(missing, has=lambda program: None) == []


def test_a_real_screen_asks_for_more(run):
    assert set(run.missing_libraries(True, can_load=lambda name: False)) > set(run.missing_libraries(False, can_load=lambda name: False))
    assert not run.missing_libraries(True, can_load=lambda name: True)


def test_a_library_that_is_there_loads_and_one_that_is_not_does_not(run):
    assert not run.loads("libsurely-nobody-has-this.so.7")


def test_who_may_not_install_is_told_the_line(run, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(run.platform, "system", lambda: "Linux")
    monkeypatch.setattr(run, "missing_libraries", lambda x11: ["libGL.so.1"])
    monkeypatch.setattr(run, "install_line", lambda missing: ["dnf", "install", "-y", "mesa-libGL"])
    assert not run.ensure_libraries(False)
    assert "sudo dnf install -y mesa-libGL" in capsys.readouterr().out


@pytest.mark.parametrize(("system", "environment", "screen"), [
    ("Linux", {}, False), ("Linux", {"DISPLAY": ""}, False), ("Linux", {"DISPLAY": ":0"}, True), ("Linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
    ("Linux", {"QT_QPA_PLATFORM": "offscreen"}, True), ("Darwin", {}, True), ("Windows", {}, True)])
def test_a_screen_is_recognised(run, system: str, environment: dict, screen: bool):
    assert run.has_screen(system, environment) is screen


# --- sentences -----------------------------------------------------------------------------------

@pytest.mark.parametrize(("log", "said"), [
    ("NewConnectionError: Failed to establish a new connection: [Errno -2] Name or service not known", "connection to the internet"),
    ("OSError: [Errno 28] No space left on device", "disk is full"),
    ("ERROR: No matching distribution found for torch==9", "No matching distribution")])
def test_a_failed_set_up_says_why(run, log: str, said: str):
    run.VENV.mkdir()
    run.LOG.write_text(log, encoding="utf-8")
    assert said in run.why_pip_failed("It failed.") and str(run.LOG) in run.why_pip_failed("It failed.")


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["help"], 0), (["tset"], 2)])
def test_help_and_mistyped_commands_install_nothing(run, words: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(run, "set_up", lambda extra: pytest.fail("set up"))
    assert run.main(words) == code
    assert "python3 run.py test" in capsys.readouterr().out


def test_every_command_sets_up_what_it_needs_and_hands_over(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Tests run where the project lies, from wherever they were asked for; everything else where the person stands."""
    heard: list = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "set_up", heard.append)
    monkeypatch.setattr(run, "ensure_libraries", lambda x11: True)
    monkeypatch.setattr(run.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(run, "hand_over", lambda *words, **environment: heard.append(words) or 0)
    monkeypatch.setattr(run, "without_screen", lambda: heard.append("terminal") or 0)
    for screen, words, wanted in ((True, [], ["", ("-P", "-m", "studio")]), (True, ["--home", "x"], ["", ("-P", "-m", "studio", "--home", "x")]),
                                  (False, [], ["", "terminal"]), (False, ["test", "-q", "-k", "x"], ["test", ("-m", "pytest", "-q", "-k", "x")]),
                                  (False, ["test"], ["test", ("-m", "pytest", "-n", "2", "--dist", "loadgroup")]),
                                  (False, ["cli", "sample"], ["", ("-P", "-m", "engine.cli", "sample")])):
        heard.clear()
        monkeypatch.setattr(run, "has_screen", lambda system, environment, screen=screen: screen)
        monkeypatch.chdir(tmp_path)
        assert run.main(words) == 0 and heard == wanted
        assert Path.cwd() == (run.ROOT if words[:1] == ["test"] else tmp_path)


def test_continuous_integration_calls_the_second_command_and_nothing_cleverer():
    lines = [line for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines == ['cd "$(dirname "$0")/.." && exec python3 run.py test']
