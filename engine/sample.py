"""The main job, whole and on real input: fetch the starter, teach two sample adapters, hear them, mix them, export, verify.

Every stage is an ordinary job in a run folder of the home, so a killed sample goes on where it was. What came out is printed and
kept in ``runs/sample-summary.json``.
"""

from __future__ import annotations

import json
import shutil
import textwrap
import time
from pathlib import Path

from engine import cli, events, specs
from engine.store.atomic import write_json
from engine.store.home import Home, free_name
from engine.store.resources import resource
from engine.store.runs import RunFolder
from engine.terminal import Terminal, duration, table

QUESTIONS = 3                              # pinned questions asked of each adapter
LONGEST = 64                               # tokens of an answer
KINDS = ("style", "shop")


class _Paused(Exception):
    """Ctrl+C: a checkpoint is written."""


def sample(home: Home, terminal: Terminal, quick: bool = False) -> int:
    """Do it all. Returns 0, or 1 if an error on unseen rows did not fall or the export is not what was heard, 130 if paused.

    Args:
        quick: one pass over each data set: proves the way, not the quality.
    """
    try:
        return _Sample(home, terminal, quick).run()
    except _Paused:
        terminal.say(f"Paused. Go on with: {cli.PROGRAM} sample{' --quick' if quick else ''}")
        return cli.PAUSED


class _Sample:
    def __init__(self, home: Home, terminal: Terminal, quick: bool):
        self.home, self.terminal, self.quick = home, terminal, quick
        self.index = json.loads(resource("samples/samples.json").read_text(encoding="utf-8"))
        self.began = time.monotonic()

    def run(self) -> int:
        base = self._base()
        taught = {kind: self._teach(kind, base) for kind in KINDS}
        answers = self._listen(base, taught)
        exported = self._export(base, taught)
        failures = self._failures(taught, exported)
        summary = {"quick": self.quick, "seconds": round(time.monotonic() - self.began, 1), "passed": not failures, "failures": failures,
                   "adapters": taught, "export": exported, "answers": answers}
        write_json(self.home.runs / "sample-summary.json", summary)
        self._print(taught, answers, exported, failures)
        return 1 if failures else 0

    # --- stages ---

    def _base(self) -> str:
        if not (self.home.starter / "config.json").exists():
            cli.model_path("starter", self.home, self.terminal)
        return str(self.home.starter)

    def _teach(self, kind: str, base: str) -> dict:
        entry = self.index[kind]
        settings = dict(entry["settings"])
        if self.quick:
            settings["passes"] = min(1.0, settings["passes"])
        self._heading(f"Teaching “{entry['title']}”: {entry['about']}")
        spec = specs.TrainSpec(base=base, data=str(resource(f"samples/{entry['file']}")), out=str(self.home.adapters / entry["name"]),
                               **settings)
        return self._stage(f"sample-{kind}", spec)

    def _export(self, base: str, taught: dict[str, dict]) -> dict:
        self._heading("Exporting the mix as a model of its own, and proving it")
        spec = specs.ExportSpec(base=base, out=str(self.home.exports / "sample-mix"), stack=self._mix(taught),
                                prompts=self.index["mix"]["prompts"][:1])
        return self._stage("sample-export", spec, [result["fingerprint"] for result in taught.values()])

    def _mix(self, taught: dict[str, dict]) -> list[specs.StackEntry]:
        return [specs.StackEntry(taught[kind]["adapter"], self.index["mix"]["strengths"][kind]) for kind in KINDS]

    def _stage(self, name: str, spec: specs.Spec, inputs: list[str] | None = None) -> dict:
        """Carry a job out, go on with it, or take its result if it is there already and was made from the same things."""
        run, made_from = RunFolder(self.home.runs / name), {**spec.to_dict(), "out": "", "inputs": inputs or []}
        if self._made_from(run) != made_from:
            self._discard(run)
            spec.out = str(free_name(Path(spec.out).parent, Path(spec.out).name))      # never over something of the person's own
            RunFolder.create(run.path, spec)
            write_json(run.path / "made-from.json", made_from)
        done = run.outcome()
        if isinstance(done, events.Finished) and Path(run.spec().out).exists():
            self.terminal.say("  is done already.")
            return done.result
        final = cli.carry_out(run.spec().check(), run, self.terminal)
        if isinstance(final, events.Stopped):
            raise _Paused
        return final.result

    def _made_from(self, run: RunFolder) -> dict | None:
        try:
            return json.loads((run.path / "made-from.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _discard(self, run: RunFolder) -> None:
        """An older sample's run and what it made; nothing else has a run folder of this name."""
        if isinstance(run.outcome(), events.Finished):
            shutil.rmtree(run.spec().out, ignore_errors=True)
        shutil.rmtree(run.path, ignore_errors=True)

    def _listen(self, base: str, taught: dict[str, dict]) -> dict[str, list[dict]]:
        """Ask base and adapters the pinned questions; for the mix, both adapters answer at once."""
        from engine.generate.session import ChatSession

        self._heading("Listening to both, and to the mix")
        session, answers = ChatSession(), {}
        for kind in (*KINDS, "mix"):
            stack = self._mix(taught) if kind == "mix" else [specs.StackEntry(taught[kind]["adapter"])]
            session.open(specs.OpenChat(base=base, stack=stack))
            asked = list(zip(self.index[kind]["prompts"], self.index[kind]["expect"], strict=True))[:QUESTIONS]
            answers[kind] = []
            for number, (question, expected) in enumerate(asked):
                self.terminal.show(events.Progress(self.index[kind]["title"], number, len(asked), "answers"))
                request = specs.Say(messages=[{"role": "user", "content": question}], columns=["base", "stack"], max_new_tokens=LONGEST)
                texts = {event.column: event.text.strip() for event in session.say(request) if isinstance(event, events.Answered)}
                answers[kind].append({"question": question, "before": texts["base"], "after": texts["stack"], "expected": expected,
                                      "heard": [phrase in texts["stack"] for phrase in expected],
                                      "heard_before": [phrase in texts["base"] for phrase in expected]})
        session.close()
        return answers

    # --- what came out ---

    def _failures(self, taught: dict[str, dict], exported: dict) -> list[str]:
        found = [f"The error on unseen rows of “{self.index[kind]['title']}” did not fall "
                 f"({result['error_before']:.3f} before, {result['error_after']:.3f} after)."
                 for kind, result in taught.items() if not result["error_after"] < result["error_before"]]
        return found + ([] if exported.get("verified") else ["The exported model could not be verified."])

    def _print(self, taught: dict[str, dict], answers: dict[str, list[dict]], exported: dict, failures: list[str]) -> None:
        for kind, entries in answers.items():
            self._heading(self.index[kind]["title"])
            for entry in entries:
                self.terminal.say(f"  {entry['question']}")
                for label in ("before", "after"):
                    text = " ".join(entry[label].split())
                    self.terminal.say(textwrap.fill(text, 110, initial_indent=f"    {label:<7}", subsequent_indent=" " * 11))
        self.terminal.say()
        rows = []
        for kind in answers:
            result = taught.get(kind, {})
            heard = {label: [h for entry in answers[kind] for h in entry[label]] for label in ("heard_before", "heard")}
            rows.append([self.index[kind]["title"], str(result.get("rows", "")), str(result.get("held_out", "")),
                         f"{result['error_before']:.3f}" if result else "", f"{result['error_after']:.3f}" if result else "",
                         f"{sum(heard['heard_before'])} → {sum(heard['heard'])} of {len(heard['heard'])}",
                         duration(result["seconds"]) if result else ""])
        self.terminal.say(table(rows, ["", "learned", "unseen", "error before", "after", "taught phrases heard", "time"]))
        self.terminal.say()
        verified = "verified" if exported.get("verified") else "NOT VERIFIED"
        self.terminal.say(f"Exported: {exported['path']} ({exported.get('bytes', 0) / 1e6:.0f} MB), {verified}. "
                          f"All in {duration(time.monotonic() - self.began)}.")
        for sentence in failures:
            self.terminal.say(sentence)

    def _heading(self, text: str) -> None:
        self.terminal.say(f"\n{text}")
