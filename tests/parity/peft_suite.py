"""PEFT's own test files, run against PEFT and against this engine in its place, and the two compared test by test.

    python -m tests.parity.peft_suite test_config test_custom_models --every 40 --at 7
    python -m tests.parity.peft_suite test_mixed --only engine --show 30
    python -m tests.parity.peft_suite --readme            # writes tests/parity/README.md from the last results

PEFT's source distribution is fetched with pip into a cache folder when it is first needed; nothing of it is kept here. The Hub
models that the tests name are replaced by local stand-ins (`tests.parity.stand_ins`). Each test starts from a seed made of its name,
so that a sample (``--every N --at K`` keeps the tests whose name's checksum is K more than a multiple of N) gives what the whole run gives.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.parity.differences import BY_CHANCE, DIFFERENCES

VERSION = "0.21.2"
REPOSITORY = Path(__file__).parents[2]
CACHE = Path(os.environ.get("PEFT_SUITE_CACHE") or Path(tempfile.gettempdir()) / "peft-suite")
README = Path(__file__).with_name("README.md")
FIRST = ["test_custom_models", "test_config", "test_mixed", "test_decoder_models"]
TIERS = {                                  # what a file asks of a program in PEFT's place
    "A: public names alone": """decoder_models feature_extraction_models encoder_decoder_models token_classification_qa mapping deft frod pvera
        randlora unilora vblora vera cpt poly hub_features torch_compile vision_models lora_megatron""".split(),
    "B: and some of its inner names": """custom_models config seq_classifier mixed low_level_api boft cartridge shira lora_conversion lorafa loraplus
        adamss_asa supertuning other auto adaption_prompt trainable_tokens xlora lora_ga bdlora helpers""".split()}
SIDES = ("peft", "engine")
PACKAGES = ("parameterized", "scikit-learn", "scipy", "joblib", "threadpoolctl", "narwhals", "cloudpickle")    # of the tests, and of PEFT's AdaMSS
LIMIT = 120                                # seconds for one test

_INI = f"""[pytest]
addopts = -p no:randomly -p no:cacheprovider --import-mode=prepend -q
timeout = {LIMIT}
markers =
    single_gpu_tests
    multi_gpu_tests
    regression
    bitsandbytes
"""

# What the suite's own conftest does not give: the engine in PEFT's place, a sample, a seed for each test, one line of JSON for each.
_CONFTEST = '''import contextlib, importlib.machinery, json, os, sys, types, zlib

import pytest

if os.environ["SUITE_SIDE"] == "engine":
    from engine.compat import install_as_peft
    install_as_peft()
import peft, torch, transformers


def _absent(name, **names):
    """Packages that the files import at their head and a few tests use: those tests fail on both sides."""
    module = types.ModuleType(name)
    module.__spec__, module.__version__ = importlib.machinery.ModuleSpec(name, None), "0"
    module.__dict__.update(names)
    sys.modules[name] = module


class Missing:
    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        raise RuntimeError("this package is not installed here")


try:
    import diffusers
except ImportError:
    _absent("diffusers", StableDiffusionPipeline=Missing)
try:
    import datasets
except ImportError:
    _absent("datasets", load_dataset=Missing.from_pretrained, Dataset=Missing)

from . import testing_utils
testing_utils.hub_online_once = lambda model_id: contextlib.nullcontext()      # it would try the network, again and again

EVERY, AT, OUT = int(os.environ["SUITE_EVERY"]), int(os.environ["SUITE_AT"]), open(os.environ["SUITE_OUT"], "a")


def pytest_collection_modifyitems(config, items):
    kept = [item for item in items if zlib.crc32(item.nodeid.encode()) % EVERY == AT]
    OUT.write(json.dumps({"collected": len(items), "kept": len(kept), "commit": os.environ["SUITE_COMMIT"]}) + "\\n")
    items[:] = kept


@pytest.fixture(autouse=True)
def _seed(request):
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call" or report.outcome != "passed":
        last = str(call.excinfo.value).splitlines()[:4] if call.excinfo is not None else []
        place = [f"{os.path.basename(str(e.path))}:{e.lineno + 1}" for e in call.excinfo.traceback][-4:] if call.excinfo is not None else []
        OUT.write(json.dumps({"test": item.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3),
                              "error": call.excinfo.typename if call.excinfo is not None else "", "message": " ".join(last)[:400],
                              "place": " > ".join(place)}) + "\\n")
        OUT.flush()
'''


def fetch() -> Path:
    """The suite's folder, complete; fetched and made on the first call."""
    suite = CACHE / "suite"
    archive = CACHE / f"peft-{VERSION}.tar.gz"
    if not archive.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "download", f"peft=={VERSION}", "--no-binary", ":all:", "--no-deps", "--no-build-isolation",
                        "-q", "-d", str(CACHE)], check=True)
    if not (suite / "tests").exists():
        with tarfile.open(archive) as sdist:
            members = [m for m in sdist.getmembers() if m.name.split("/")[1:2] == ["tests"] and m.name.endswith(".py")]
            for member in members:
                member.name = member.name.partition("/")[2]
            sdist.extractall(suite, members=members, filter="data")
    if not (CACHE / "packages").exists():
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(CACHE / "packages"), *PACKAGES], check=True)
    (suite / "tests" / "__init__.py").touch()
    (suite / "tests" / "conftest.py").write_text(_CONFTEST)
    (suite / "pytest.ini").write_text(_INI)
    return suite


def _commit() -> str:
    """What the repository holds; a mark behind it tells that files differ."""
    return subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()


class Sample(NamedTuple):
    """The tests whose name's checksum leaves the rest ``at`` when it is divided by ``every``."""

    every: int = 1
    at: int = 0

    @classmethod
    def of(cls, results: Path) -> "Sample":
        """Which a file of results holds."""
        return cls(*map(int, results.name.split(".")[2].split("+")))

    def __str__(self) -> str:
        return f"{self.every}+{self.at}" if self.at else str(self.every)

    def __contains__(self, test: str) -> bool:
        return zlib.crc32(test.encode()) % self.every == self.at

    def holds_all_of(self, other: "Sample") -> bool:
        return other.every % self.every == 0 and other.at % self.every == self.at


def run(name: str, side: str, sample: Sample, choose: str | None = None, tests: list[str] | None = None) -> Path:
    """Run one of PEFT's files in a process of its own; one line of JSON a test goes to the file returned."""
    suite = fetch()
    out = CACHE / "results" / f"{name}.{side}.{'chosen' if choose or tests else sample}.jsonl"
    out.parent.mkdir(exist_ok=True)
    out.unlink(missing_ok=True)
    every, at = Sample() if tests else sample
    environment = {**os.environ, "SUITE_SIDE": side, "SUITE_EVERY": str(every), "SUITE_AT": str(at), "SUITE_OUT": str(out),
                   "SUITE_COMMIT": _commit(), "HF_HOME": str(CACHE / "hf"),
                   "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false",
                   "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(CACHE / "packages")])}
    command = [sys.executable, "-m", "pytest", "-c", "pytest.ini", *(tests or [f"tests/{name}.py"]), *(["-k", choose] if choose else [])]
    log = out.with_suffix(".log")
    with open(log, "w") as file:
        subprocess.run(command, cwd=suite, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if not out.exists() or not out.stat().st_size:
        sys.exit(f"{name} could not be started on the side {side}; the end of {log}:\n{log.read_text()[-3000:]}")
    return out


@dataclass
class Outcomes:
    """What one side made of a file."""

    collected: int = 0
    commit: str = ""
    tests: dict[str, dict] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Outcomes":
        self = cls()
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = json.loads(line)
            if "collected" in entry:
                self.collected, self.commit = entry["collected"], entry.get("commit", "")
            elif self.tests.get(entry["test"], {}).get("outcome") != "failed":    # a failure in tearing down counts
                self.tests[entry["test"]] = entry
        return self

    @classmethod
    def of(cls, name: str, side: str, sample: Sample) -> "Outcomes":
        """The sample's, or its part of a larger one's: the tests are the same, and each has a seed of its own."""
        known = {Sample.of(path): path for path in (CACHE / "results").glob(f"{name}.{side}.[0-9]*.jsonl")}
        larger = max((one for one in known if one.holds_all_of(sample)), default=None)
        self = cls() if larger is None else cls.read(known[larger])
        self.tests = {test: entry for test, entry in self.tests.items() if test in sample}
        return self

    def passed(self) -> set[str]:
        return {test for test, entry in self.tests.items() if entry["outcome"] == "passed"}


def _unnumbered(test: str) -> str:
    """A test's name without the running number of its settings."""
    return re.sub(r"kwargs\d+", "kwargs", test)


@dataclass(frozen=True)
class Comparison:
    """One file: tests that pass for PEFT here, and what became of them with the engine in its place."""

    name: str
    sample: Sample
    collected: int
    run: int
    reference: int                         # pass for PEFT
    passed: int                            # of these, for the engine
    by_intent: Counter                     # reason → failed because we differ on purpose
    failed: list[dict]
    more: int                              # pass for the engine though not for PEFT

    @classmethod
    def of(cls, name: str, sample: Sample) -> "Comparison":
        theirs, ours = (Outcomes.of(name, side, sample) for side in SIDES)
        reference, passed = theirs.passed(), ours.passed()
        if strangers := {_unnumbered(test) for test in passed - theirs.tests.keys()}:       # more configs have a setting here, so numbers shift
            passed |= {test for test in reference - ours.tests.keys() if _unnumbered(test) in strangers}
        by_intent, failed = Counter(), []
        for test in sorted(reference - passed):
            reason = next((why for pattern, why in DIFFERENCES if fnmatch.fnmatchcase(test, pattern)), None)
            if reason:
                by_intent[reason] += 1
            else:
                failed.append(ours.tests.get(test, {"test": test, "outcome": "not run", "error": "NotCollected", "message": "", "place": ""}))
        return cls(name, sample, theirs.collected, len(theirs.tests), len(reference), len(reference & passed), by_intent, failed,
                   len(passed - reference))

    @property
    def ratio(self) -> float:
        counted = self.reference - sum(self.by_intent.values())
        return self.passed / counted if counted else 0.0

    def row(self) -> str:
        every, at = self.sample
        sample = "all" if every == 1 else f"1 in {every}" + f", from {at}" * bool(at)
        return (f"| `{self.name}` | {self.collected:,} | {sample}: {self.run:,} | {self.reference:,} | {self.passed:,} | "
                f"{sum(self.by_intent.values())} | {f'{self.ratio:.2%}' if self.reference else 'PEFT passes none offline'} |")


def total(tier: str, rows: list[Comparison]) -> str:
    """The line below a tier's files: sums, and the share that would pass of all that are collected, as each file's sample tells."""
    reference, passed, intent = (sum(n) for n in zip(*((r.reference, r.passed, sum(r.by_intent.values())) for r in rows), strict=True))
    weights = [(r.collected * r.reference / r.run, r.ratio) for r in rows if r.run and r.reference]
    ratio = sum(weight * share for weight, share in weights) / sum(weight for weight, _ in weights)
    return (f"| **{tier}** | {sum(r.collected for r in rows):,} | {sum(r.run for r in rows):,} | {reference:,} | {passed:,} | {intent} | "
            f"**{passed / (reference - intent):.2%}**; by the files' sizes {ratio:.2%} |")


HEAD = ("| file | collected | run | pass for PEFT | of these for the engine | differ on purpose | ratio |\n"
        "|---|---:|---:|---:|---:|---:|---:|")


def causes(comparison: Comparison, how_many: int) -> str:
    """The failures by what was raised, most frequent first, each with the shortest test that shows it."""
    groups: dict[str, list[dict]] = {}
    for entry in comparison.failed:
        groups.setdefault(f"{entry['error']}: {entry['message'][:110]}", []).append(entry)
    lines = []
    for cause, entries in sorted(groups.items(), key=lambda g: -len(g[1]))[:how_many]:
        shown = min(entries, key=lambda e: len(e["test"]))
        lines.append(f"{len(entries):5d}  {cause}\n       {shown['test'].partition('::')[2]}\n       {shown['place']}")
    return "\n".join(lines)


def _empty(names: list[str], rows: list[Comparison]) -> list[str]:
    """Lines for files of which PEFT itself can collect nothing here."""
    return [f"| `test_{name}` | 0 | – | – | – | – | PEFT collects none offline |" for name in names
            if f"test_{name}" not in {row.name for row in rows} and list((CACHE / "results").glob(f"test_{name}.peft.*.log"))]


def _named(failed: list[dict]) -> str:
    """Failed tests by name, those of one reason together."""
    groups: dict[str, list[str]] = {}
    for entry in failed:
        why = next((why for pattern, why in BY_CHANCE if fnmatch.fnmatchcase(entry["test"], pattern)), "")
        groups.setdefault(why, []).append(f"`{entry['test'].rpartition('::')[2]}`")
    return "; ".join(", ".join(names) + f" ({why})" * bool(why) for why, names in groups.items())


def readme(rows: list[Comparison]) -> str:
    """The page that stands beside this file."""
    commits = " ".join(Outcomes.of(row.name, "engine", row.sample).commit for row in rows)
    commits = ", ".join(sorted(set(commits.replace(",", " ").split())))
    reasons = Counter()
    for row in rows:
        reasons.update(row.by_intent)
    patterns: dict[str, list[str]] = {}
    for pattern, why in DIFFERENCES:
        patterns.setdefault(why, []).append(f"`{pattern}`")
    tiers = [(tier, [row for row in rows if row.name.removeprefix("test_") in names]) for tier, names in TIERS.items()]
    there = [(tier, of_tier) for tier, of_tier in tiers if of_tier]
    others = [row for row in rows if not any(row in of_tier for _, of_tier in tiers)]
    tables = [(f"Tier {tier}", [*(r.row() for r in of_tier), *_empty(TIERS[tier], of_tier), total(f"tier {tier[0]}", of_tier)])
              for tier, of_tier in there]
    tables.append(("Both", [total("tiers A and B", [row for _, of_tier in there for row in of_tier])]))
    if others:
        tables.append(("Files that look into PEFT's own structure", [row.row() for row in others]))
    tables = "\n\n".join("\n".join([f"## {title}", "", HEAD, *lines]) for title, lines in tables)
    causes_left = "\n".join(f"- `{row.name}`: {_named(row.failed)}" for _, of_tier in there for row in of_tier if row.failed)
    intent = "\n".join(f"- {why} *({', '.join(tests)}; {reasons[why]} in this run)*" for why, tests in patterns.items())
    return f"""# PEFT's own tests, with the engine in PEFT's place

Written by `python -m tests.parity.peft_suite --readme` from the last run of each file, at {commits}; not by hand.
PEFT {VERSION}'s test files are fetched when they are run and never kept here; Hub models are replaced by small local stand-ins of the same
architecture, there is no network.
"Pass for PEFT" is the measure: tests that PEFT itself passes under these conditions. The ratio leaves out what differs on purpose.

{tables}

A sample holds the tests whose name's checksum is divisible by the number given ("from K": leaves the rest K): it is the same on every machine.
Files that are not named here have not been run with this state of the engine. The tiers are those of what a file imports: a third has files
that test PEFT's private structure, a fourth needs graphics cards or packages that are not here.

## What fails

{causes_left or "Nothing."}

## Where the engine differs on purpose

{intent}
"""


def known_results(files: list[str]) -> list[tuple[str, Sample]]:
    """(file, sample) of what both sides have run, in the order of the tiers."""
    latest: dict[str, Path] = {}
    for path in sorted((CACHE / "results").glob("*.engine.[0-9]*.jsonl"), key=lambda path: path.stat().st_mtime):
        latest[path.name.split(".")[0]] = path
    order = [f"test_{name}" for names in TIERS.values() for name in names]
    found = [(name, Sample.of(latest[name])) for name in [*(n for n in order if n in latest), *sorted(latest.keys() - set(order))]]
    return [(name, sample) for name, sample in found if Outcomes.of(name, "peft", sample).collected and (not files or name in files)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help=f"of PEFT's test files, without “.py”; by default {' '.join(FIRST)}")
    parser.add_argument("--every", type=int, default=1, help="run one test in so many")
    parser.add_argument("--at", type=int, default=0, help="which of so many: another sample for each number below")
    parser.add_argument("--only", choices=SIDES, help="run this side alone (and compare with the other's last run)")
    parser.add_argument("--again", action="store_true", help="run PEFT's side too where there are results already")
    parser.add_argument("--failed", action="store_true", help="run only what failed for the engine the last time; prints, records nothing")
    parser.add_argument("-k", dest="choose", help="pytest's -k; prints, records nothing")
    parser.add_argument("--show", type=int, default=20, help="how many causes of failure to print")
    parser.add_argument("--readme", action="store_true", help="run nothing; write README.md from the last results of each file")
    options = parser.parse_args()
    if options.readme:
        README.write_text(readme([Comparison.of(name, sample) for name, sample in known_results(options.files)]))
        return
    from tests.parity.stand_ins import build

    fetch()
    build(CACHE / "hf")
    rows, sample = [], Sample(options.every, options.at)
    for name in options.files or FIRST:
        if options.failed or options.choose:
            tests = [e["test"] for e in Comparison.of(name, sample).failed] if options.failed else None
            done = Outcomes.read(run(name, options.only or "engine", sample, options.choose, tests))
            entries = [e for e in done.tests.values() if e["outcome"] == "failed"]
            print(Counter(e["outcome"] for e in done.tests.values()))
            print(causes(Comparison(name, sample, 0, 0, 0, 0, Counter(), entries, 0), options.show))
            continue
        for side in SIDES:
            known = side == "peft" and not options.again and Outcomes.of(name, side, sample).collected > 0
            if options.only in (None, side) and not known:
                run(name, side, sample)
        rows.append(Comparison.of(name, sample))
        print(HEAD if len(rows) == 1 else "", rows[-1].row(), causes(rows[-1], options.show), sep="\n", flush=True)


if __name__ == "__main__":
    main()
