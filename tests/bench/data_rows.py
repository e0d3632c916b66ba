"""A million rows of examples: how fast they are read, how soon the first is seen, and how much memory they take.

    python -m tests.bench.data_rows [--rows 1000000] [--kinds jsonl csv parquet] [--lint] [--write]

Each kind is measured in a process of its own: ``first`` is the time until the window has what it shows at once (what the columns
mean, the first thousand rows), ``index`` the one reading of all rows that goes on in the background, ``page`` a page from the middle as
the list asks for it, ``walk`` rows a second as training and lint read them, ``memory`` the growth of the peak of the process's resident memory over
what the imports took. ``--write`` keeps the figures in ``tests/bench/results/data_rows.json``.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

RESULTS = Path(__file__).parent / "results" / "data_rows.json"
ANSWER = "Kept dry in a paper bag it stays fresh for two days; after that, toast it or make crumbs of it. "


def records(rows: int) -> Iterator[dict[str, str]]:
    """Different rows of about 300 letters."""
    for n in range(rows):
        yield {"id": str(n), "answer": ANSWER * (1 + n % 4) + f"({n})",
               "question": f"How long does the loaf with number {n} keep, and may I freeze it?"}


def write(path: Path, rows: int) -> None:
    """The same rows as csv, jsonl or parquet."""
    if path.suffix == ".jsonl":
        with open(path, "w", encoding="utf-8") as file:
            for record in records(rows):
                file.write(json.dumps(record) + "\n")
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", "question", "answer"])
            writer.writeheader()
            writer.writerows(records(rows))
    else:
        import pyarrow
        from pyarrow import parquet

        schema = pyarrow.schema([(name, pyarrow.string()) for name in ("id", "question", "answer")])
        with parquet.ParquetWriter(path, schema) as writer:
            block = []
            for record in records(rows):
                block.append(record)
                if len(block) == 50_000:
                    writer.write_table(pyarrow.Table.from_pylist(block, schema))
                    block.clear()
            if block:
                writer.write_table(pyarrow.Table.from_pylist(block, schema))


def measure(path: Path, lint: bool) -> dict[str, float]:
    """Figures of one file, in this process. Seconds, rows a second, MB."""
    import resource

    from engine.data.describe import describe, show_rows
    from engine.data.lint import lint as look
    from engine.data.shapes import load
    from engine.data.split import split
    from engine.specs import DescribeData, LintData, ShowRows

    small = path.with_name(f"small{path.suffix}")
    write(small, 100)
    describe(DescribeData(str(small)))     # what is imported is no part of it
    show_rows(ShowRows(str(small)))
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024               # noqa: E731
    before, figures = peak(), {"file_mb": round(path.stat().st_size / 1e6)}

    def timed(name: str, work) -> object:
        began, processor = time.perf_counter(), time.process_time()
        found = work()
        figures[name], figures[f"{name}_cpu"] = round(time.perf_counter() - began, 3), round(time.process_time() - processor, 3)
        return found
    timed("first", lambda: describe(DescribeData(str(path), head=1000)))
    report = timed("index", lambda: describe(DescribeData(str(path))))
    middle = report.rows // 2
    timed("page", lambda: show_rows(ShowRows(str(path), start=middle, count=50, letters=600)))
    timed("next_page", lambda: show_rows(ShowRows(str(path), start=middle + 50, count=50, letters=600)))
    learned, tested = split(load(path).rows, 0.1)
    seen = timed("walk", lambda: sum(1 for _ in learned) + sum(1 for _ in tested))
    assert seen == report.rows
    figures |= {"rows": report.rows, "rows_per_s": round(report.rows / figures["walk_cpu"]), "memory_mb": round(peak() - before)}
    if lint:
        timed("lint", lambda: look(LintData(str(path))))
        figures["lint_memory_mb"] = round(peak() - before)
    return figures


def main() -> None:
    """Measure each kind in its own process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kinds", nargs="+", default=["jsonl", "csv", "parquet"])
    parser.add_argument("--lint", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(Path(asked.one), asked.lint)))
        return
    kept = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in asked.kinds:
            path = Path(folder) / f"rows.{kind}"
            write(path, asked.rows)
            done = subprocess.run([sys.executable, "-m", "tests.bench.data_rows", "--one", str(path), *(["--lint"] if asked.lint else [])],
                                  capture_output=True, text=True, cwd=Path(__file__).parents[2])
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            kept[kind] = json.loads(done.stdout)
            path.unlink()
            print(kind, kept[kind], flush=True)
    if asked.write:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent).stdout.strip()
        RESULTS.write_text(json.dumps({"date": datetime.date.today().isoformat(), "commit": commit, "kinds": kept}, indent=1) + "\n",
                           encoding="utf-8")


if __name__ == "__main__":
    main()
