"""The headless twin of the window: the same specs, the same events, the same run folders.

``adapter-studio sample | train | find-speed | review | rebuild | chat | merge | export | fetch | inspect``. Exit codes: 0 done,
1 failed (with a sentence), 2 wrong use, 130 paused by Ctrl+C (with the command that goes on).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import signal
import sys
import typing
from pathlib import Path
from collections.abc import Iterator

from engine import events, specs
from engine.errors import BadModel, Busy, InvalidSpec, StudioError, explain
from engine.store.home import Home, free_name
from engine.store.runs import RunFolder
from engine.terminal import Terminal, duration

PAUSED = 130
PROGRAM = os.environ.get("ADAPTER_STUDIO_COMMAND", "adapter-studio")       # what a person types to get here


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code and raises nothing but argparse's own `SystemExit`."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):              # a stream that a test or a notebook put there
            stream.reconfigure(encoding="utf-8", errors="replace")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")                    # beside other programs, spinning threads slow everyone down
    arguments = parser().parse_args(argv)
    if arguments.home:
        os.environ["ADAPTER_STUDIO_HOME"] = str(Path(arguments.home).expanduser().resolve())
    terminal = Terminal()
    try:
        return arguments.do(arguments, Home.default(), terminal)
    except KeyboardInterrupt:
        terminal.say("Stopped.")
        return PAUSED
    except BrokenPipeError:                # whoever read us has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as problem:
        error = explain(problem)
        Terminal(sys.stderr).error(error)
        if error.details and os.environ.get("ADAPTER_STUDIO_DETAILS"):
            print(error.details, file=sys.stderr)
        return 2 if isinstance(error, InvalidSpec) else 1


# --- carrying out a job ------------------------------------------------------------------------

def carry_out(spec: specs.Spec, run: RunFolder, terminal: Terminal, plain: bool = False) -> events.Event:
    """Run a job here and show it. Ctrl+C asks it to save and pause; a second one breaks it off.

    Args:
        plain: print each event as a line of JSON instead.

    Returns:
        The final event (`Finished` or `Stopped`). Raises the job's `StudioError` if it failed.
    """
    from engine.worker.run import run_job

    run.clear()
    with _interrupt_pauses(run, terminal):
        for event in run_job(spec, run):
            if plain:
                terminal.say(json.dumps(event.to_dict(), ensure_ascii=False))
            else:
                terminal.show(event)
    if isinstance(event, events.Failed):
        raise StudioError.from_dict(event.error)
    return event


@contextlib.contextmanager
def _interrupt_pauses(run: RunFolder, terminal: Terminal) -> Iterator[None]:
    def asked(number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run.ask("pause")
        terminal.say("  Saving, then stopping. (Ctrl+C again stops at once, back to the last checkpoint.)")

    try:
        before = signal.signal(signal.SIGINT, asked)
    except ValueError:                     # not the main thread: Ctrl+C is somebody else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _job(spec: specs.Spec, arguments: argparse.Namespace, home: Home, terminal: Terminal) -> tuple[int, dict]:
    """Start (or, with --resume, go on with) a job. Returns the exit code and its result."""
    if arguments.resume:
        run = RunFolder(_run_path(arguments.resume, home))
        spec = run.spec()
    else:
        spec.check()
        home.prepare()
        run = RunFolder.create(free_name(home.runs, f"{spec.kind} {Path(spec.out).name}"), spec)
    try:
        final = carry_out(spec, run, terminal, arguments.json)
    except StudioError as error:
        error.facts["run"] = str(run.path)
        raise
    if isinstance(final, events.Stopped):
        terminal.say(f"Paused at step {final.step}." if final.resumable else "Stopped.")
        terminal.say(f"Go on with: {PROGRAM} {spec.kind} --resume {run.path.name if run.path.parent == home.runs else run.path}")
        return PAUSED, {}
    return 0, final.result


def _run_path(name: str, home: Home) -> Path:
    for path in (Path(name), home.runs / name):
        if (path / "spec.json").exists():
            return path.resolve()
    raise StudioError(f"There is no run called {name}.", do=f"Runs lie in {home.runs}.")


# --- what people mean by a name ----------------------------------------------------------------

def model_path(name: str, home: Home, terminal: Terminal) -> str:
    """A folder, a model of the library by its name, or “starter” (fetched if it is not there yet)."""
    if name == "starter":
        if not (home.starter / "config.json").exists():
            terminal.say("Fetching the starter model (once).")
            home.prepare()
            spec = specs.FetchSpec(out=str(home.starter))
            final = carry_out(spec, RunFolder.create(free_name(home.runs, "fetch starter"), spec), terminal)
            if isinstance(final, events.Stopped):
                raise KeyboardInterrupt
        return str(home.starter)
    return _known(name, home.models)


def adapter_path(name: str, home: Home) -> str:
    """A folder, or an adapter of the library by its name."""
    return _known(name, home.adapters)


def _known(name: str, shelf: Path) -> str:
    path = Path(name).expanduser()
    return str((shelf / name if not path.exists() and path.name == name and (shelf / name).exists() else path).resolve())


def _new_path(name: str, shelf: Path) -> str:
    """Where something new goes: a bare name into the library, anything with a separator where it says."""
    path = Path(name).expanduser()
    return str((shelf / name if path.name == name and not path.is_absolute() else path).resolve())


def stack_of(adapters: list[str], home: Home) -> list[specs.StackEntry]:
    """``["shop", "style=0.5"]`` as a stack. A number after the last “=” is the strength."""
    entries = []
    for text in adapters:
        name, equals, number = text.rpartition("=")
        try:
            strength = float(number) if equals else 1.0
        except ValueError:
            name, strength = text, 1.0
        entries.append(specs.StackEntry(adapter_path(name if equals and name else text, home), strength))
    return entries


def base_of(stack: list[specs.StackEntry], home: Home) -> str:
    """The model that the stack's first adapter was made for. Raises `BadModel` if it is not on this computer."""
    from engine.store.library import read_adapter, read_model, scan

    if not stack:
        raise InvalidSpec("Which model?", do="Name it with --base.")
    info = read_adapter(stack[0].adapter)
    if Path(info.base).is_dir():
        return str(Path(info.base).resolve())
    for model in scan(home.models, read_model)[0]:
        if info.base_fingerprint == model.fingerprint or (not info.base_fingerprint and model.name == Path(info.base).name):
            return str(model.path)
    raise BadModel(f"The model that {info.name} was made for ({info.base or 'not named'}) is not here.", do="Name it with --base.")


# --- the commands ------------------------------------------------------------------------------

def _sample(arguments: argparse.Namespace, home: Home, terminal: Terminal) -> int:
    from engine.sample import sample

    return sample(home.prepare(), terminal, quick=arguments.quick)


def _plan(arguments: argparse.Namespace, home: Home, terminal: Terminal) -> specs.TrainSpec:
    """The training plan that file and flags describe."""
    data = _spec_data(arguments, specs.TrainSpec)
    if "data" not in data:
        raise InvalidSpec("Which examples?", do=f"For example: {PROGRAM} {arguments.command} --data answers.csv")
    data["data"] = str(Path(data["data"]).expanduser().resolve())
    data["out"] = _new_path(data["out"], home.adapters) if "out" in data else str(free_name(home.adapters, Path(data["data"]).stem))
    spec = specs.TrainSpec.from_dict({"base": "starter", **data}).check()
    if not Path(spec.data).exists():
        raise StudioError(f"The file {spec.data} is not there.", do="Check its name.")
    spec.base = model_path(spec.base, home, terminal)
    return spec


def _train(arguments: argparse.Namespace, home: Home, terminal: Terminal) -> int:
    if arguments.more or arguments.half_speed:
        if not arguments.resume:
            raise InvalidSpec("There is no training to change yet.", do="Name one that goes on, with --resume, or set --passes and --learning-rate.")
        run = RunFolder(_run_path(arguments.resume, home))
        if isinstance(run.outcome(), events.Finished):
            raise Busy(f"The training {run.path.name} is finished already.", do="Teach a new adapter, with more --passes.")
        if arguments.more:
            run.extend(arguments.more)
        if arguments.half_speed:
            run.slow_down()
    spec = None if arguments.resume else _plan(arguments, home, terminal)
    code, result = _job(spec, arguments, home, terminal)
    if result and not arguments.json:
        terminal.say(f"Taught in {duration(result.get('seconds', 0))}: {result['adapter']}")
        if result.get("error_before") is not None and result.get("error_after") is not None:
            before, after = result["error_before"], result["error_after"]
            terminal.say(f"Error on unseen examples: {before:.3f} before, {after:.3f} after (lower is better).")
        terminal.say(f"Talk to it: {PROGRAM} chat --adapter {result['adapter']}")
    return code


def _find_speed(arguments: argparse.Namespace, home: Home, terminal: Terminal) -> int:
    spec = None if arguments.resume else specs.FindSpeedSpec(_plan(arguments, home, terminal))
    code, result = _job(spec, arguments, home, terminal)
    if result and not arguments.json:
        if result["learning_rate"] is None:
            terminal.say("No learning speed made the error smaller. Look at the examples, or at the method.")
        else:
            terminal.say(f"Learning speed: {result['learning_rate']:g} (a tenth of {result['lowest']:.2g}, where the error was lowest)")
            terminal.say(f"Use it: {PROGRAM} train … --learning-rate {result['learning_rate']:g}")
    return code


def _export(arguments: argparse.Namespace, home: Home, terminal: Terminal) -> int:
    spec = None
    if not arguments.resume:
        data = _spec_data(arguments, specs.ExportSpec)
        if arguments.adapter:
            data["stack"] = [entry.to_dict() for entry in stack_of(arguments.adapter, home)]
        data["verify"] = data.get("verify", True) and arguments.verifies
        stack = [specs.StackEntry.from_dict(entry) for entry in data.get("stack", [])]
        if not stack:
            raise InvalidSpec("Which adapters?", do=f"For example: {PROGRAM} {arguments.command} --adapter shop --adapter style=0.5")
        data["base"] = model_path(data["base"], home, terminal) if "base" in data else base_of(stack, home)
        data["out"] = (_new_path(data["out"], home.exports) if "out" in data else
                       str(free_name(home.exports, " ".join(Path(e.adapter).name for e in stack))))
        spec = specs.ExportSpec.from_dict(data)
    code, result = _job(spec, arguments, home, terminal)
    if result and not arguments.json:
        terminal.say(f"{'Verified: ' if result.get('verified') else 'Written: '}{result['path']} ({result.get('bytes', 0) / 1e6:.0f} MB)")
        if result.get("receipt"):
            terminal.say(f"Receipt: {result['receipt']}")
    return code


def _review(arguments: argparse.Namespace, home: Home, terminal: Terminal) -> int:
    spec = None
    if not arguments.resume:
        data = _spec_data(arguments, specs.ReviewSpec)
        spec = specs.ReviewSpec.from_dict({**data, "adapter": adapter_path(_needed(data, "adapter", arguments.command), home)}).check()
    code, result = _job(spec, arguments, home, terminal)
    if result and not arguments.json:
        if result["rows"]:
            low, high = result["interval"]
            terminal.say(f"Error on {result['rows']} unseen examples: {result['before']:.3f} before, {result['after']:.3f} after; "
                         f"{result['gain']:.0%} less (95 %: {low:.0%} to {high:.0%}).")
            terminal.say(f"Better in {result['wins']}, the same in {result['same']}, worse in {result['losses']}. "
                         f"Best at strength {result['best_strength']:g}.")
        general = result["general"]
        terminal.say(f"Error on {general['rows']} general questions: {general['before']:.3f} before, {general['after']:.3f} after.")
    return code


def _rebuild(arguments: argparse.Namespace, home: Home, terminal: Terminal) -> int:
    spec = None
    if not arguments.resume:
        data = _spec_data(arguments, specs.RebuildSpec)
        adapter = adapter_path(_needed(data, "adapter", arguments.command), home)
        out = _new_path(data["out"], home.adapters) if "out" in data else str(free_name(home.adapters, f"{Path(adapter).name} again"))
        spec = specs.RebuildSpec(adapter=adapter, out=out).check()
    code, result = _job(spec, arguments, home, terminal)
    if result and not arguments.json:
        terminal.say(f"{'The same file again' if result['identical'] else 'Not the same file'}: {result['adapter']}")
    return code


def _needed(data: dict, name: str, command: str) -> str:
    if name not in data:
        raise InvalidSpec(f"Which {name}?", do=f"For example: {PROGRAM} {command} --{name} shop")
    return data[name]


def _fetch(arguments: argparse.Namespace, home: Home, terminal: Terminal) -> int:
    local = Path(arguments.model).expanduser()
    model = str(local.resolve()) if local.exists() else arguments.model
    name = local.name.removesuffix(".gguf")
    out = home.starter if model == "starter" else home.models / name
    spec = specs.FetchSpec(out=_new_path(arguments.out, home.models) if arguments.out else str(out), model=model)
    code, result = _job(spec, arguments, home, terminal)
    if result and not arguments.json:
        terminal.say(f"Here: {result['path']}")
    return code


def _chat(arguments: argparse.Namespace, home: Home, terminal: Terminal) -> int:
    from engine.chat import Chat

    stack = stack_of(arguments.adapter, home)
    base = model_path(arguments.base, home, terminal) if arguments.base else base_of(stack, home) if stack else \
        model_path("starter", home, terminal)
    chat = Chat(base, stack, terminal, longest=arguments.longest, temperature=arguments.temperature, seed=arguments.seed)
    return chat.answer_all(arguments.ask) if arguments.ask else chat.live()


def _inspect(arguments: argparse.Namespace, home: Home, terminal: Terminal) -> int:
    from engine.inspect import describe

    path = Path(arguments.path).expanduser()
    for shelf in (home.adapters, home.models):
        if not path.exists() and path.name == arguments.path and (shelf / path).exists():
            path = shelf / path
    facts = describe(path)
    if arguments.json:
        terminal.say(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            for number, line in enumerate(value if isinstance(value, list) else [value]):
                terminal.say(f"{'' if number else name:<{width}}  {line}")
    return 0


# --- arguments ---------------------------------------------------------------------------------

def parser() -> argparse.ArgumentParser:
    """All commands; flags for jobs are made from the fields of their specs."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--home", help="folder of library, runs and exports (else the environment variable ADAPTER_STUDIO_HOME, "
                                       "else the system's place for such data)")
    top = argparse.ArgumentParser(prog=PROGRAM, description="Teach a language model, mix what it learned, take the result with you.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, do, help: str, **more) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, parents=[common], **more)
        sub.set_defaults(do=do)
        return sub

    sample = command("sample", _sample, "teach two sample adapters, mix, export and verify them: the whole way, on real input")
    sample.add_argument("--quick", action="store_true", help="fewer passes: proves the way, not the quality")

    for name, do, help in (("train", _train, "teach an adapter from a file of examples"),
                           ("find-speed", _find_speed, "find out by a short trial how fast a training may learn")):
        sub = command(name, do, help)
        sub.add_argument("spec", nargs="?", help="JSON file of a training plan; flags override it")
        _job_flags(sub)
        _flags(sub, specs.TrainSpec, leave_out=("edits",))
        if name == "train":
            sub.add_argument("--more", type=_passes, metavar="PASSES", help="with --resume: add so many passes over the examples")
            sub.add_argument("--half-speed", action="store_true", help="with --resume: go on from the last good state with half the learning speed")

    for name, do, cls, help in (("review", _review, specs.ReviewSpec, "compare an adapter with its untaught model on unseen examples"),
                                ("rebuild", _rebuild, specs.RebuildSpec, "teach an adapter again from its recipe: the same file, to the byte")):
        sub = command(name, do, help)
        sub.add_argument("spec", nargs="?", help="JSON file of such a job; flags override it")
        _job_flags(sub)
        _flags(sub, cls)

    for name, verifies, help in (("export", True, "bake adapters into their model, reload the result and prove it"),
                                 ("merge", False, "bake adapters into their model, without the proof")):
        export = command(name, _export, help)
        export.set_defaults(verifies=verifies)
        export.add_argument("spec", nargs="?", help="JSON file of an export; flags override it")
        _adapter_flag(export)
        _job_flags(export)
        _flags(export, specs.ExportSpec, leave_out=("stack",) if verifies else ("stack", "verify"))

    chat = command("chat", _chat, "talk to a model with adapters on it")
    chat.add_argument("--base", help="model folder, name in the library, or “starter” (default: the adapter's own model)")
    _adapter_flag(chat)
    chat.add_argument("--ask", action="append", default=[], metavar="QUESTION", help="answer this and end; may be repeated")
    chat.add_argument("--longest", type=int, default=300, help="longest answer in tokens (default 300)")
    chat.add_argument("--temperature", type=float, default=0.0, help="0 always takes the likeliest word (default)")
    chat.add_argument("--seed", type=int, default=0)

    fetch = command("fetch", _fetch, "bring a model into the library")
    fetch.add_argument("model", nargs="?", default="starter", help="“starter” (default), a name on the Hub, a model folder or a GGUF file")
    fetch.add_argument("--out", help="folder, or name in the library")
    _job_flags(fetch)

    inspect = command("inspect", _inspect, "say what a model, an adapter, a data file or a safetensors file is")
    inspect.add_argument("path")
    inspect.add_argument("--json", action="store_true", help="as JSON")
    return top


def _job_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--resume", metavar="RUN", help="go on with a run that was paused or broken off (its folder, or name)")
    sub.add_argument("--json", action="store_true", help="print every event as a line of JSON")


def _adapter_flag(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--adapter", action="append", default=[], metavar="ADAPTER[=STRENGTH]",
                     help="folder or name in the library, 1 is its full strength; may be repeated, the order counts")


def _flags(sub: argparse.ArgumentParser, cls: type[specs.Spec], leave_out: tuple[str, ...] = ()) -> None:
    """One flag a field, with label, help, unit and default from its metadata; absent flags leave the spec file's values."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in leave_out:
            continue
        meta, hint = field.metadata, hints[field.name]
        default = "" if field.default in (dataclasses.MISSING, "") else f" (default {field.default})"
        unit = f" In {meta['unit']}." if meta.get("unit") else ""
        text = f"{meta['label']}: {meta['help']}{unit}{default}"
        options: dict = {"dest": f"spec_{field.name}", "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        if hint is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif hint is dict:
            options |= {"type": _json_object, "metavar": "JSON"}
        elif typing.get_origin(hint) is list:
            options |= {"action": "append", "metavar": "TEXT"}
        else:
            options |= {"type": hint, "metavar": hint.__name__.upper().replace("STR", "TEXT")}
            if meta.get("choices"):
                options |= {"choices": meta["choices"], "metavar": None}
        sub.add_argument("--" + field.name.replace("_", "-"), **options)


def _passes(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError("needs a number of passes above 0")
    return value


def _json_object(text: str) -> dict:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("needs a JSON object such as {\"r\": 8}")
    return value


def _spec_data(arguments: argparse.Namespace, cls: type[specs.Spec]) -> dict:
    """The spec file, if one was given, and over it the flags. Raises `InvalidSpec`."""
    data: dict = {}
    if arguments.spec:
        try:
            data = json.loads(Path(arguments.spec).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidSpec(f"The plan {arguments.spec} cannot be read.", str(error), "It must be a JSON file.") from error
        if not isinstance(data, dict) or data.get("kind", cls.kind) != cls.kind:
            raise InvalidSpec(f"{arguments.spec} is not a plan for “{cls.kind}”.")
    return data | {name.removeprefix("spec_"): value for name, value in vars(arguments).items() if re.match("spec_", name)}


if __name__ == "__main__":
    sys.exit(main())
