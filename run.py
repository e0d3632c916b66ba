#!/usr/bin/env python3
"""Adapter Studio in two commands. Needs nothing but Python 3.11 or newer.

    python3 run.py              sets everything up (in .venv, beside this file) and opens the studio
    python3 run.py test …       sets everything up and runs the tests (… goes to pytest)
    python3 run.py cli …        the same studio without a window: sample, train, chat, export … (… goes to adapter-studio)

On Windows: py run.py. Repeating a command is quick; an interrupted set-up is begun again. Environment variables:
ADAPTER_STUDIO_TORCH chooses the PyTorch build (cpu, cu126, cu128, cu130, rocm7.1, default), ADAPTER_STUDIO_HOME the place of models and work.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BEGUN, STAMP, LOG = VENV / "studio-begun", VENV / "studio-ready.json", VENV / "studio-setup.log"
RECIPE = 1                                 # raise it when the way of setting up changes
OLDEST = (3, 11)
COMMAND = ("py" if os.name == "nt" else "python3") + " run.py cli"      # what the command line calls itself in its hints
TORCH = "2.13.0"
TORCH_INDEX = "https://download.pytorch.org/whl/"      # PyTorch's own wheels, by build
ROCM = ("rocm7.2", "rocm7.1", "rocm7.0", "rocm6.4")
HELD: "list[int]" = []                     # handle of the lock; programs that work on .venv inherit it and so keep it beyond our death
WORKERS = 4                                # processes of the whole test suite, which want a gigabyte each; one a processor at most
ROOM = 2_500_000_000                       # bytes that a set-up without CUDA needs at its peak

# library that Qt opens → package: Debian and Ubuntu, Fedora, Arch
QT_LIBRARIES = {
    "libglib-2.0.so.0": ("libglib2.0-0", "glib2", "glib2"), "libGL.so.1": ("libgl1", "mesa-libGL", "libglvnd"),
    "libEGL.so.1": ("libegl1", "mesa-libEGL", "libglvnd"), "libxkbcommon.so.0": ("libxkbcommon0", "libxkbcommon", "libxkbcommon"),
    "libfontconfig.so.1": ("libfontconfig1", "fontconfig", "fontconfig"), "libdbus-1.so.3": ("libdbus-1-3", "dbus-libs", "dbus")}
X11_LIBRARIES = {
    "libxcb-cursor.so.0": ("libxcb-cursor0", "xcb-util-cursor", "xcb-util-cursor"),
    "libxcb-icccm.so.4": ("libxcb-icccm4", "xcb-util-wm", "xcb-util-wm"),
    "libxcb-keysyms.so.1": ("libxcb-keysyms1", "xcb-util-keysyms", "xcb-util-keysyms"),
    "libxcb-image.so.0": ("libxcb-image0", "xcb-util-image", "xcb-util-image"),
    "libxcb-render-util.so.0": ("libxcb-render-util0", "xcb-util-renderutil", "xcb-util-renderutil"),
    "libxcb-shape.so.0": ("libxcb-shape0", "libxcb", "libxcb"), "libxcb-xkb.so.1": ("libxcb-xkb1", "libxcb", "libxcb"),
    "libxkbcommon-x11.so.0": ("libxkbcommon-x11-0", "libxkbcommon-x11", "libxkbcommon-x11")}


class Stop(Exception):
    """Something a person has to do first; its text says what."""


# --- which PyTorch -------------------------------------------------------------------------------

def driver_cuda(nvidia_smi: str) -> "tuple[int, int] | None":
    """The newest CUDA that the installed driver can run, from the text that ``nvidia-smi`` prints; None without a driver."""
    found = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", nvidia_smi)
    return (int(found[1]), int(found[2])) if found else None


def choose_torch(system: str, nvidia_smi: str = "", kfd: bool = False, override: str = "") -> "tuple[str, str]":
    """(build, sentence) for this machine. Builds: ``default`` (the registry's own), ``cpu``, ``cu126`` …, ``rocm``."""
    if override:
        return override, f"PyTorch {override}, as ADAPTER_STUDIO_TORCH asks"
    if system == "Darwin":
        return "default", "PyTorch for the Mac"
    cuda = driver_cuda(nvidia_smi)
    if cuda and cuda >= (13, 0):
        return ("default" if system == "Linux" else "cu130"), "PyTorch for the NVIDIA graphics card (CUDA 13)"
    if cuda and cuda >= (12, 8):
        return "cu128", "PyTorch for the NVIDIA graphics card (CUDA 12.8)"
    if cuda and cuda >= (12, 6):
        return "cu126", "PyTorch for the NVIDIA graphics card (CUDA 12.6)"
    if cuda:
        return "cpu", f"PyTorch without graphics card: the NVIDIA driver knows only CUDA {cuda[0]}.{cuda[1]}; a newer driver makes it faster"
    if kfd and system == "Linux":
        return "rocm", "PyTorch for the AMD graphics card"
    return ("cpu" if system == "Linux" else "default"), "PyTorch for a computer without a graphics card"


def torch_attempts(build: str) -> "list[list[str]]":
    """Arguments of ``pip install``, best first: what pip finds by itself, then PyTorch's own index of that build.

    ``torch==2.13.0+cpu`` names one build exactly: it never turns into the one that brings gigabytes of CUDA.
    """
    if build == "default":
        return [[f"torch=={TORCH}"]]
    if build == "rocm":
        return [[f"torch=={TORCH}+{name}", "--index-url", TORCH_INDEX + name] for name in ROCM] + torch_attempts("cpu")
    exact = f"torch=={TORCH}+{build}"
    local = [["--no-index", f"torch=={TORCH}"]] if build == "cpu" else []          # a wheel laid ready for pip, without a build in its name
    return [[exact], *local, [exact, "--index-url", TORCH_INDEX + build]]


def nvidia_smi() -> str:
    """What ``nvidia-smi`` prints, or nothing."""
    program = shutil.which("nvidia-smi")
    if not program:
        return ""
    try:
        return subprocess.run([program], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


# --- is it already set up? -----------------------------------------------------------------------

def machine_key() -> dict:
    """What the set-up depends on, told in a blink; another value means: set up again."""
    return {"recipe": RECIPE, "project": hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest(),
            "python": list(sys.version_info[:2]), "system": f"{platform.system()} {platform.machine()}", "folder": str(ROOT),
            "card": [bool(shutil.which("nvidia-smi")), os.path.exists("/dev/kfd")], "torch": os.environ.get("ADAPTER_STUDIO_TORCH", "")}


def is_ready(stamp: Path, key: dict, extra: str, python: Path) -> bool:
    """Whether a finished set-up with this key and extra stands there."""
    try:
        known = json.loads(stamp.read_text(encoding="utf-8"))
        return python.exists() and known["key"] == key and (not extra or extra in known["extras"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def venv_python() -> Path:
    """The interpreter of the environment."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


# --- the libraries of the system -----------------------------------------------------------------

def loads(library: str) -> bool:
    """Whether the system's loader finds a shared library (the only question that matters to Qt)."""
    try:
        ctypes.CDLL(library)
        return True
    except OSError:
        return False


def missing_libraries(x11: bool, can_load=loads) -> "list[str]":
    """Names of the shared libraries that Qt will ask for in vain. Only Linux leaves them to its packages."""
    wanted = [*QT_LIBRARIES, *(X11_LIBRARIES if x11 else ())]
    return [name for name in wanted if not can_load(name)]


def install_line(missing: "list[str]", has=shutil.which) -> "list[str]":
    """The command that installs the packages of these libraries on this system; empty where its packages are not known."""
    known = {**QT_LIBRARIES, **X11_LIBRARIES}
    apt = ["apt-get", "install", "-y", "--no-install-recommends"]
    for column, command in enumerate((apt, ["dnf", "install", "-y"], ["pacman", "-S", "--needed"])):
        if has(command[0]):
            return [*command, *dict.fromkeys(known[name][column] for name in missing)]
    return []


def ensure_libraries(x11: bool) -> bool:
    """Install what Qt needs where that is allowed (root on Debian or Ubuntu); otherwise print the line to type. True if all is there."""
    if platform.system() != "Linux" or not (missing := missing_libraries(x11)):
        return True
    line = install_line(missing)
    if line[:1] == ["apt-get"] and os.geteuid() == 0:
        with step("Installing the system libraries of the window"):
            apt_get(line)
        missing = missing_libraries(x11)
        if not missing:
            return True
    say("The window needs system libraries that are not installed: " + ", ".join(missing) + ".")
    say("Type this once:  sudo " + " ".join(line) if line else "Install them with your system's package manager, then try again.")
    return False


def apt_get(line: "list[str]") -> None:
    """Run an apt-get line quietly; if its lists are too old, fetch them once. Failure shows in what is still missing afterwards."""
    quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL,
             "stderr": subprocess.DEVNULL}
    if subprocess.run(line, check=False, **quiet).returncode:
        subprocess.run(["apt-get", "update"], check=False, **quiet)
        subprocess.run(line, check=False, **quiet)


# --- setting up ----------------------------------------------------------------------------------

def say(text: str = "") -> None:
    print(text, flush=True)


@contextlib.contextmanager
def step(title: str):
    """One line a step; it ends with the seconds it took, or with how it failed."""
    print(f"  {title} … ", end="", flush=True)
    begun = time.monotonic()
    try:
        yield
    except BaseException as error:
        print("interrupted" if isinstance(error, KeyboardInterrupt) else "did not work", flush=True)
        raise
    print(f"{time.monotonic() - begun:.0f} s", flush=True)


@contextlib.contextmanager
def only_one():
    """Two set-ups of the same folder take turns; the system frees the lock when its holder dies."""
    with open(ROOT / ".venv.lock", "a+", encoding="utf-8") as file:
        waited = False
        while True:
            try:
                if os.name == "nt":
                    import msvcrt

                    file.seek(0)
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not waited:
                    say("Another run.py is setting up this folder; waiting for it …")
                waited = True
                time.sleep(0.3)
        if os.name != "nt":
            HELD.append(file.fileno())
        try:
            yield                          # closing the file gives the lock back
        finally:
            HELD.clear()


def pip(*arguments: str) -> bool:
    """Run pip in the environment, with its talk in the log file. False if it failed."""
    with open(LOG, "a", encoding="utf-8") as log:
        log.write(f"\n$ pip {' '.join(arguments)}\n")
        log.flush()
        command = [str(venv_python()), "-m", "pip", *arguments, "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
        return subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT, pass_fds=HELD, check=False).returncode == 0


def make_venv() -> None:
    """An empty environment. One that was begun here and never finished is thrown away; one that a person made is used as it is."""
    if BEGUN.exists() and not STAMP.exists():
        throw_away()
    if venv_python().exists() and not wrong_python():
        return
    if VENV.exists() and not BEGUN.exists():
        raise Stop(f"There is a folder {VENV} without a working Python {OLDEST[0]}.{OLDEST[1]} in it. Remove it, then try again.")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        line = ["apt-get", "install", "-y", "--no-install-recommends", package]
        if not (shutil.which("apt-get") and os.geteuid() == 0):
            raise Stop(f"Python's part for making environments is missing. Type this once:  sudo {' '.join(line)}") from None
        with step("Installing Python's part for making environments"):
            apt_get(line)
    if VENV.exists():
        throw_away()
    VENV.mkdir()
    BEGUN.touch()
    done = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True, pass_fds=HELD, check=False)
    if done.returncode:
        raise Stop("Python could not make its environment:\n" + (done.stdout + done.stderr).strip())


def throw_away() -> None:
    """Remove the environment; renamed first, so that a half-removed one is never mistaken for one. Takes older leftovers along."""
    VENV.rename(VENV.with_name(f".venv.old-{os.getpid()}"))
    for old in ROOT.glob(".venv.old-*"):
        shutil.rmtree(old, ignore_errors=True)


def wrong_python() -> bool:
    """Whether the environment was made by a Python of another version than this one (it is then made anew) or does not start."""
    try:
        asked = subprocess.run([str(venv_python()), "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=False)
    except OSError:
        return True
    version = tuple(int(n) for n in asked.stdout.split()) if asked.returncode == 0 else ()
    return version != tuple(sys.version_info[:2]) if BEGUN.exists() else version < OLDEST


def set_up(extra: str) -> None:
    """Make the environment hold the project with ``extra``. The stamp is written last: without it, everything is begun again."""
    key = machine_key()
    if is_ready(STAMP, key, extra, venv_python()):
        return
    with only_one():
        if is_ready(STAMP, key, extra, venv_python()):
            return
        if not VENV.exists() and shutil.disk_usage(ROOT).free < ROOM:
            raise Stop(f"There is too little room on the disk of {ROOT}: {ROOM / 1e9:.1f} GB are needed. Free some, then try again.")
        say("Setting up Adapter Studio (once; the next start takes no time)")
        try:
            extras = set(json.loads(STAMP.read_text(encoding="utf-8"))["extras"])
        except (OSError, ValueError, KeyError):
            extras = set()
        extras |= {extra} - {""}
        build, sentence = choose_torch(platform.system(), nvidia_smi(), os.path.exists("/dev/kfd"), key["torch"])
        with step("Making an environment in .venv"):
            make_venv()
            STAMP.unlink(missing_ok=True)
            if not pip("--version"):
                subprocess.run([str(venv_python()), "-m", "ensurepip"], capture_output=True, check=False)
        with step(f"Installing {sentence}"):
            if not any(pip("install", "--no-deps", *attempt) for attempt in torch_attempts(build)):
                raise Stop(why_pip_failed("PyTorch could not be installed."))
        with step("Installing the studio" + (" and its tests" if "test" in extras else "")):
            if not pip("install", "-e", f".[{','.join(sorted(extras))}]" if extras else "."):
                raise Stop(why_pip_failed("The studio could not be installed."))
        temporary = STAMP.with_suffix(".part")
        temporary.write_text(json.dumps({"key": key, "extras": sorted(extras), "build": build}), encoding="utf-8")
        os.replace(temporary, STAMP)


def why_pip_failed(what: str) -> str:
    """What happened, why as far as the log tells, and where the rest can be read."""
    tail = LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-400:]
    text = "\n".join(tail)
    if "No space left" in text:
        why = "The disk is full. Free some room, then try again."
    elif re.search(r"NewConnectionError|Name or service not known|Temporary failure in name|getaddrinfo|timed out|Network is unreachable", text):
        why = "The package index could not be reached. Check the connection to the internet, then try again: it goes on from what has arrived."
    else:
        errors = [line for line in tail if "ERROR" in line][-3:]
        why = "\n".join(errors) or "pip gave up."
    return f"{what} {why}\nEverything that was said is in {LOG}"


# --- handing over --------------------------------------------------------------------------------

def hand_over(*arguments: str, **environment: str) -> int:
    """Become the program (POSIX), or wait for it (Windows). Returns its exit code where it returns at all.

    Programs of the studio are started with ``-P``: a file that happens to be called engine.py where the person stands is not theirs.
    """
    command = [str(venv_python()), *arguments]
    environment = {**os.environ, **environment}
    sys.stdout.flush()
    if os.name == "posix":
        os.execve(command[0], command, environment)
    return subprocess.run(command, env=environment, check=False).returncode


def has_screen(system: str, environment) -> bool:
    """Whether a window can be shown. Only on Linux may there be none; who names a platform of Qt knows what they do."""
    return system != "Linux" or any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"))


def without_screen() -> int:
    """The main job where no window can be shown: the sample project in the terminal, then pictures of the window."""
    say("There is no screen here, so the sample project runs in this terminal: the same engine, the same job.")
    say("(With a screen, this command opens the window.  Other jobs:  python3 run.py cli --help)\n")
    result = subprocess.run([str(venv_python()), "-P", "-m", "engine.cli", "sample"], check=False,
                            env={**os.environ, "ADAPTER_STUDIO_COMMAND": COMMAND}).returncode
    if not ensure_libraries(x11=False):
        return result
    asked = subprocess.run([str(venv_python()), "-P", "-c", "from engine.store.home import Home; print(Home.default().root / 'pictures')"],
                           capture_output=True, text=True, check=True)
    folder = Path(asked.stdout.strip())
    say("\nDrawing pictures of the window …")
    drawn = subprocess.run([str(venv_python()), "-P", "-m", "studio", "--shots", str(folder)], check=False,
                           env={**os.environ, "QT_QPA_PLATFORM": "offscreen"}).returncode
    say(f"Pictures of the window are in {folder}" if drawn == 0 else "The pictures of the window could not be drawn; the text above says why.")
    return result or drawn


def newer_python() -> "str | None":
    """A Python on this machine that is new enough, if this one is not."""
    names = [f"python3.{minor}" for minor in range(19, OLDEST[1] - 1, -1)]
    return next((path for name in names if (path := shutil.which(name))), None)


def main(arguments: "list[str]") -> int:
    """Do what the command line asks; see the head of this file."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="replace")
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command in ("-h", "--help", "help"):
        say(__doc__.strip())
        return 0
    if command not in ("", "test", "cli") and not command.startswith("-"):
        say(f"Unknown command: {command}\n\n{__doc__.strip()}")
        return 2
    try:
        if command == "cli":
            set_up("")
            return hand_over("-P", "-m", "engine.cli", *rest, ADAPTER_STUDIO_COMMAND=COMMAND)
        if command == "test":
            if not ensure_libraries(x11=False):
                return 1
            set_up("test")
            os.chdir(ROOT)
            return hand_over("-m", "pytest", *(rest or ["-n", str(min(os.cpu_count() or 1, WORKERS)), "--dist", "loadgroup"]))
        screen = has_screen(platform.system(), os.environ)
        if screen and not ensure_libraries(x11=bool(os.environ.get("DISPLAY"))):
            return 1
        set_up("")
        return hand_over("-P", "-m", "studio", *arguments) if screen else without_screen()
    except Stop as stop:
        say(f"\n{stop}")
        return 1
    except KeyboardInterrupt:
        say("\nInterrupted. The same command begins again where it makes sense.")
        return 130


if __name__ == "__main__":
    if sys.version_info < OLDEST:
        better = newer_python()
        if better is None:
            sys.exit("Adapter Studio needs Python %d.%d or newer; this is %s. Install it from your system's packages or from python.org."
                     % (*OLDEST, platform.python_version()))
        sys.exit(subprocess.call([better, *sys.argv]))
    sys.exit(main(sys.argv[1:]))
