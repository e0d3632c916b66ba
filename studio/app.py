"""The composition root: everything is built here once and handed on by constructor. Nothing else in the studio is global.

The window is painted before anything slow happens: what needs a plot, a folder scan or the queue comes right after.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from PySide6.QtCore import QLibraryInfo, QLocale, QObject, QTimer, QTranslator, Qt, Signal
from PySide6.QtWidgets import QApplication, QWidget

from engine import events
from engine.errors import StudioError, explain
from engine.specs import RebuildSpec
from engine.store.atomic import write_text
from engine.store.home import Home, free_name
from engine.store.library import AdapterInfo
from studio import frame_actions
from studio.core import text as language
from studio.core.actions import ActionRegistry
from studio.core.catalogue import Catalogue
from studio.core.machine import Machine
from studio.core.settings import Settings
from studio.core.stack_document import StackDocument, same_path
from studio.core.text import frame as text
from studio.core.text.work import STATES
from studio.jobs.bridge import QueueBridge, TalkBridge
from studio.jobs.job import Job, State
from studio.jobs.queue import JobQueue, open_queue
from studio.jobs.runner import Runner
from studio.jobs.runner_process import ProcessRunner
from studio.jobs.talk import ProcessTalk, Talk
from studio.models.background import Background
from studio.models.loading import loaded
from studio.models.steps import Steps
from studio.models.undo import UndoStack
from studio.views import notify, theme
from studio.views.activity_bar import ActivityBar
from studio.views.inspector_panel import InspectorPanel
from studio.views.library_panel import LibraryPanel
from studio.views.main_window import MainWindow
from studio.views.mix_panel import MixPanel
from studio.views.parts import Panel

log = logging.getLogger(__name__)

LOOK = 0.002                               # seconds for which a step waits for a module that is being loaded


class Studio(QObject):
    """One open studio over one home.

    Args:
        app: the Qt application. home: where everything lies. runner, talk: who works and who answers (child processes by default).

    Building it paints nothing and starts nothing; `show` opens the window, `settle` brings in what is slower.
    Raises `Busy` if another studio has this home open, `StudioError` if the home cannot be used.
    """

    ended = Signal()                       # everything is saved and the window is gone
    _closed_behind = Signal()

    def __init__(self, app: QApplication, home: Home, *, runner: Runner | None = None, talk: Talk | None = None):
        super().__init__()
        self.app, self.home = app, home.prepare()
        self.settings = Settings(home.settings)
        language.use(self.settings.get("language"))
        QLocale.setDefault(country())
        self._qt_words = QTranslator(self)       # OK, Close, what a right click in a field offers
        if self._qt_words.load(f"qtbase_{language.language()}", QLibraryInfo.path(QLibraryInfo.LibraryPath.TranslationsPath)):
            app.installTranslator(self._qt_words)
        theme.apply(app, self.settings.get("theme"), self.settings.get("text_size"))
        self.catalogue = Catalogue(home)
        self.document = StackDocument()
        self.undo = UndoStack(self.document, self)
        self.queue: JobQueue = open_queue(home, runner or ProcessRunner(home.root / "logs" / "worker.log"))
        self.queue.start()
        self.talk = talk or ProcessTalk(home.root / "logs" / "talk.log")
        self.background, self._dresser, self._filler = Background(self), Steps(self), Steps(self)
        self.queue_bridge = QueueBridge(self.queue, self)
        self.talk_bridge = TalkBridge(self.talk, self)
        self.actions = ActionRegistry()
        self._told: set[tuple[int, int]] = set()
        self._settled = False
        self._build_frame()
        self._connect()

    # --- building ---

    def _build_frame(self) -> None:
        self.library = LibraryPanel(self.catalogue, self.background, self.add_to_stack, lambda: self.window.run("library.starter"))
        self.mix = MixPanel(self.document, self.undo, self.catalogue)
        self.inspector = InspectorPanel(self.catalogue, self.add_to_stack)
        self.activity = ActivityBar(self.queue_bridge, self.undo, self.home.root)
        self.window = MainWindow(self.settings, self.actions, library=self.library, inspector=self.inspector, activity=self.activity)
        frame_actions.register(self)
        for key in frame_actions.WORKSPACES:
            self.window.reserve(key, text.workspace(key), key)
        self._builders = {"teach": self._teach_panel(), "try": self._try_panel(), "export": self._export_panel(), "queue": self._queue_panel()}
        self.window.fill("mix", self.mix)
        self.window.fill("start", self._start_panel())
        self.window.build_menus()
        self.window.restore()

    def panel(self, key: str) -> QWidget:
        """A workspace's panel, built now if it was not yet."""
        for _ in self._building(key):
            pass
        return self.window.panels[key]

    def _building(self, key: str) -> Iterator[None]:
        """What is left to do of a panel, in short steps."""
        yield from self._builders.get(key, ())
        self._builders.pop(key, None)

    def _place(self, key: str, panel: Panel) -> Panel:
        self.window.fill(key, panel)
        if hasattr(panel, "actions"):
            self.actions.add(*panel.actions())
        return panel

    def _start_panel(self) -> QWidget:
        from studio.views.start_panel import StartPanel
        panel = StartPanel(self.home, Machine.here().sentence(), self.actions, self.catalogue, self.queue_bridge)
        panel.go.connect(self.window.go)
        panel.sample_wanted.connect(self.start_sample)
        panel.opened.connect(self.show_job)
        panel.library_changed.connect(self.library.refresh)
        return panel

    # The panels below are not seen first; they are built after the first paint, in turns of the event loop. Each stands in its place before
    # there is much in it: Qt restyles all that is in a widget which moves.

    def _teach_panel(self) -> Iterator[None]:
        while not loaded("numpy", LOOK):
            yield
        from studio.views.teach_panel import TeachPanel
        yield
        panel = TeachPanel(self.home, self.catalogue, self.queue_bridge, self.talk_bridge, self.settings, in_steps=True)
        self._place("teach", panel)
        yield from panel.build()
        panel.kept.connect(self._kept)
        panel.library_changed.connect(self.library.refresh)
        panel.go.connect(self.window.go)

    def _try_panel(self) -> Iterator[None]:
        from studio.views.try_panel import TryPanel
        yield
        panel = TryPanel(self.document, self.talk_bridge, self.catalogue, self.undo, self.home)
        yield
        self._place("try", panel).teach_wanted.connect(self.teach_file)

    def _export_panel(self) -> Iterator[None]:
        from studio.views.export_panel import ExportPanel
        yield
        panel = ExportPanel(self.home, self.document, self.catalogue, self.queue_bridge)
        yield
        self._place("export", panel).library_changed.connect(self.library.refresh)

    def _queue_panel(self) -> Iterator[None]:
        from studio.views.queue_panel import QueuePanel
        yield
        panel = QueuePanel(self.queue_bridge)
        yield
        self._place("queue", panel).opened.connect(self.show_job)

    def _connect(self) -> None:
        window = self.window
        window.listen(self.library)
        window.listen(self.inspector)
        self.inspector.rebuild_wanted.connect(self.rebuild)
        self.inspector.run_wanted.connect(self.show_run)
        self.inspector.data_wanted.connect(self.teach_file)
        window.closing.connect(self.close)
        self.activity.wish.connect(window.go)
        self.mix.wish.connect(window.go)
        self.mix.files.connect(self._bring_in_and_add)
        self.mix.selected.connect(self.inspector.show_thing)
        self.library.selected.connect(self.inspector.show_thing)
        self.talk_bridge.failed.connect(lambda error: notify.show_error(window, error))
        self.queue_bridge.changed.connect(self._job_changed)
        self.queue_bridge.event.connect(self._job_event)
        self.settings.subscribe(self._setting_changed)
        self._closed_behind.connect(self._end, Qt.ConnectionType.QueuedConnection)
        self._keep = QTimer(self, singleShot=True, interval=500)
        self._keep.timeout.connect(self.keep_stack)
        self.document.changed.connect(lambda _: self._keep.start())
        self.app.styleHints().colorSchemeChanged.connect(self.dress)

    # --- opening ---

    def show(self) -> None:
        """Open the window; everything slower follows once it is painted."""
        self.window.painted.connect(self.settle)
        self.window.show()

    def settle(self, at_once: bool = False) -> None:
        """Read the library and the last stack, build the remaining panels, tell of interrupted jobs; once.

        ``at_once``: all of it before returning.
        """
        if self._settled:
            return
        self._settled = True
        self._load_stack()
        if at_once:
            self.catalogue.refresh()
            for key in list(self._builders):
                self.panel(key)
        else:
            self.library.refresh()
            self._filler.begin(self._fill_rest())
        for job in self.queue.jobs():
            self._tell_interrupted(job)

    def _fill_rest(self) -> Iterator[None]:
        """The panels that are not there yet, first the one that is looked at.

        What stands afterwards is looked through by no collector of garbage any more: that takes longer than a picture may wait.
        """
        gc.disable()
        try:
            for key in sorted(self._builders, key=lambda key: key != self.window.current()):
                yield from self._building(key)
        finally:
            gc.freeze()
            gc.enable()

    def _load_stack(self) -> None:
        try:
            self.document.load_json(self._stack_file.read_text(encoding="utf-8"))
            self.undo.clear()
        except FileNotFoundError:
            log.debug("no stack yet")
        except (OSError, UnicodeDecodeError, StudioError) as problem:
            error, beside = explain(problem), self._stack_file.with_name("stack-damaged.json")
            try:                           # the next change writes a new one
                os.replace(self._stack_file, beside)
                error.do = f"{error.do} What was saved is kept as {beside.name}."
            except OSError:
                log.exception("the damaged stack stays where it is")
            notify.show_error(self.window, error)

    @property
    def _stack_file(self) -> Path:
        return self.home.root / "stack.json"

    def keep_stack(self) -> None:
        """Write the stack down, so that nothing mixed is lost whatever happens."""
        if not self._settled:              # the stack of last time has not been read yet
            return
        try:
            write_text(self._stack_file, self.document.to_json())
        except OSError as error:
            notify.show_error(self.window, explain(error))

    # --- what panels and jobs tell ---

    def add_to_stack(self, adapters: list[Path]) -> None:
        """Put adapters into the stack and show it."""
        if adapters:
            self.window.go("mix")
            self.mix.add(adapters)

    def start_sample(self) -> None:
        """Show the sample project in Teach, ready to start."""
        self.panel("teach").start_sample()
        self.window.go("teach")

    def show_job(self, id: int) -> None:
        """Show a training in Teach."""
        self.panel("teach").show_job(id)
        self.window.go("teach")

    def show_run(self, folder: Path) -> None:
        """Show the training of a run folder in Teach."""
        job = next((job for job in self.queue.jobs() if same_path(job.folder, folder)), None)
        if job is None:
            self.window.say(text.run_gone())
        else:
            self.show_job(job.id)

    def teach_file(self, file: Path) -> None:
        """Show a file of examples in Teach."""
        self.panel("teach").use_file(file)
        self.window.go("teach")

    def rebuild(self, adapter: AdapterInfo) -> None:
        """Teach an adapter again from its recipe, under a name beside its own."""
        title = text.rebuild_title(name=adapter.name)
        try:
            self.queue.submit(RebuildSpec(adapter=str(adapter.path), out=str(free_name(self.home.adapters, title))), title)
        except StudioError as error:
            notify.show_error(self.window, error)
            return
        self.window.say(text.rebuild_queued(name=adapter.name))
        self.window.go("queue")

    def _kept(self, adapter: Path, base: Path, strength: float) -> None:
        """A fresh adapter was accepted in Teach: it goes into the stack, which stands on its model from now on, and is tried."""
        self.catalogue.refresh()
        self.library.select(Path(adapter))
        if not same_path(self.document.base, base):
            self.mix.choose_base(Path(base))
        self.mix.add([Path(adapter)], strength)
        self.window.go("try")

    def _bring_in_and_add(self, folders: list[Path], place: int) -> None:
        """Adapter folders dropped on the stack: copied into the library, then added where they were dropped."""
        def arrived(found: tuple) -> None:
            path, snapshot = found
            self.catalogue.adopt(snapshot)
            for why in self.mix.model.add([path], place):
                self.window.say(why)
        for folder in folders:
            self.background.run(lambda folder=folder: (self.catalogue.bring_in(folder), self.catalogue.look()), arrived,
                                lambda error: notify.show_error(self.window, error))

    def running(self) -> list[Job]:
        return [job for job in self.queue.jobs() if job.state is State.RUNNING]

    def resumable(self) -> list[Job]:
        """Jobs that stopped without being given up."""
        return [job for job in self.queue.jobs() if job.state in (State.PAUSED, State.INTERRUPTED)]

    def _job_changed(self, job: Job) -> None:
        if job.state is not State.WAITING:
            self.library.refresh()
        if job.state is State.FAILED and self._first_time(job) and not self._is_seen(job):
            notify.show_error(self.window, StudioError.from_dict(job.error or {}), (text.show_queue(), lambda: self.window.go("queue")))
        if job.state in (State.PAUSED, State.CANCELLED):
            self.window.say(f"{STATES[job.state.value]()}: {job.title}")
        self._tell_interrupted(job)

    def _is_seen(self, job: Job) -> bool:
        """Whether somebody looks at this training, and so at its error, right now."""
        train = self.panel("teach").train if self.window.current() == "teach" else None
        return train is not None and train.isVisible() and train.job is not None and train.job.id == job.id

    def _job_event(self, id: int, event: events.Event) -> None:
        if isinstance(event, events.Finished):
            self.library.refresh()
            self.window.say(text.job_done(title=self.queue.job(id).title))

    def _tell_interrupted(self, job: Job) -> None:
        """A job that a killed program or a power cut left behind: say so and offer to go on."""
        if job.state is State.INTERRUPTED and self._first_time(job):
            where = text.resumes_at(step=job.step) if job.step else text.begins_anew()
            notify.tell(self.window, text.interrupted(title=job.title), where, level="warn", seconds=None,
                        button=(text.do_resume(), lambda: self._resume(job)))

    def _resume(self, job: Job) -> None:
        try:
            self.queue.resume(job.id)
            self.window.go("queue")
        except StudioError as error:
            notify.show_error(self.window, error)

    def _first_time(self, job: Job) -> bool:
        """Whether this end of this attempt was not told yet."""
        new = (job.id, job.attempt) not in self._told
        self._told.add((job.id, job.attempt))
        return new

    def _setting_changed(self, name: str) -> None:
        if name in ("theme", "text_size"):
            self.dress()

    def dress(self, *_) -> None:
        """Show theme and text size as they are set, without holding up the window."""
        self._dresser.begin(theme.change(self.app, self.settings.get("theme"), self.settings.get("text_size")))

    # --- closing ---

    def close(self) -> None:
        """Keep everything and end. A running job saves where it is first; the window says so and goes when it has."""
        self._dresser.stop()
        self._filler.stop()
        for keep in (*(panel.closing for panel in self.window.panels.values() if hasattr(panel, "closing")), self.window.remember, self.keep_stack):
            try:
                keep()
            except OSError:                # a disk that is full must not keep the window open for ever
                log.exception("not kept at the end")
        self._settled = True               # what had not begun to settle shall not begin now
        if jobs := self.running():
            notify.tell(self.window, text.closing(title=jobs[0].title), text.closing_why(), level="warn", seconds=None)
            self.window.wait_for_end()
        else:
            self.window.hide()
        for bridge in (self.queue_bridge, self.talk_bridge):
            bridge.stop_ticking()
        for timer in (*self.window.findChildren(QTimer), self._keep):
            timer.stop()                   # nobody asks the queue any more: it is being closed
        threading.Thread(target=self._close_behind, name="closing", daemon=True).start()

    def _close_behind(self) -> None:
        try:
            self.talk.close()
            self.queue.close()
            self.background.close()
        finally:
            self._closed_behind.emit()

    def _end(self) -> None:
        gc.unfreeze()
        self.app.removeTranslator(self._qt_words)
        self.window.end()
        self.ended.emit()
        self.app.quit()


def country() -> QLocale:
    """How dates and typed numbers are written: as this computer does, if it speaks the language in use, otherwise as that language does."""
    system = QLocale.system()
    return system if system.name().split("_")[0] == language.language() else QLocale(language.language())


def open_studio(home: Home, *, runner: Runner | None = None, talk: Talk | None = None, app: QApplication | None = None) -> Studio:
    """A studio whose unexpected errors are shown to the person instead of being lost."""
    app = app or QApplication.instance() or QApplication(sys.argv[:1])
    app.setApplicationName("adapter-studio")
    app.setApplicationDisplayName("Adapter Studio")
    studio = Studio(app, home, runner=runner, talk=talk)

    def unexpected(kind, error, trace) -> None:
        log.error("unexpected", exc_info=(kind, error, trace))
        notify.show_error(studio.window, explain(error))
    sys.excepthook = unexpected
    return studio
