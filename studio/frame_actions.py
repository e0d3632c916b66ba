"""Everything the frame lets a person do, as `Action`s: menus, shortcuts and palette are made from these."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QUrl
from PySide6.QtGui import QDesktopServices
from PySide6.QtWidgets import QFileDialog, QMessageBox

import engine
from engine.specs import FetchSpec
from studio.core.actions import Action
from studio.core.settings import TEXT_SIZES
from studio.core.text import frame as text
from studio.core.text import languages
from studio.views import theme

if TYPE_CHECKING:
    from studio.app import Studio

WORKSPACES = ("start", "teach", "mix", "try", "export", "queue")
STARTER_FOLDER = "SmolLM2-135M-Instruct"


def register(studio: "Studio") -> None:
    """Add the frame's own actions to the registry."""
    for make in (_file, _edit, _stack, _work, _go, _view, _help):
        studio.actions.add(*make(studio))


def _file(studio: "Studio") -> list[Action]:
    menu = text.menu_file()
    return [
        Action("library.import", text.do_import(), partial(choose_adapter_folder, studio), "Ctrl+I", text.do_import_help(), menu, icon="import"),
        Action("library.starter", text.do_starter(), partial(fetch_starter, studio), "", text.do_starter_help(), menu,
               enabled=partial(may_fetch_starter, studio), icon="model"),
        Action("library.refresh", text.do_refresh(), studio.library.refresh, "F5", text.do_refresh_help(), menu, icon="refresh"),
        Action("library.folder", text.do_folder(), lambda: QDesktopServices.openUrl(QUrl.fromLocalFile(str(studio.home.root))), "",
               text.do_folder_help(), menu, icon="folder"),
        Action("app.quit", text.do_quit(), studio.window.close, "Ctrl+Q", text.do_quit_help(), menu),
    ]


def _edit(studio: "Studio") -> list[Action]:
    menu, undo = text.menu_edit(), studio.undo
    return [
        Action("edit.undo", text.undo(), undo.undo, "Ctrl+Z", text.do_undo_help(), menu,
               enabled=lambda: bool(undo.undo_words()) or text.nothing_to_undo(), icon="undo"),
        Action("edit.redo", text.redo(), undo.redo, "Ctrl+Shift+Z", text.do_redo_help(), menu,
               enabled=lambda: bool(undo.redo_words()) or text.nothing_to_redo(), icon="redo"),
        Action("edit.clip.cut", text.do_cut(), studio.mix.list.cut, "Ctrl+X", text.do_cut_help(), menu, enabled=_row(studio), local=True),
        Action("edit.clip.copy", text.do_copy(), partial(_copy, studio), "Ctrl+C", text.do_copy_help(), menu, local=True),
        Action("edit.clip.paste", text.do_paste(), studio.mix.list.paste, "Ctrl+V", text.do_paste_help(), menu, local=True),
        Action("edit.find", text.do_find(), lambda: (studio.window.library.show(), studio.library.search.setFocus()), "Ctrl+L",
               text.do_find_help(), menu, icon="search"),
    ]


def _stack(studio: "Studio") -> list[Action]:
    menu, tree, rows, here = text.menu_stack(), studio.library.tree, studio.mix.list, _row(studio)
    return [
        Action("stack.add", text.add_to_stack(), lambda: studio.add_to_stack([a.path for a in tree.adapters()]), "Return", text.do_add_help(),
               menu, enabled=lambda: bool(tree.adapters()) or text.choose_an_adapter(), local=True, icon="plus"),
        Action("stack.row.switch", text.do_switch(), rows.switch_current, "Space", text.do_switch_help(), menu, enabled=here, local=True),
        Action("stack.row.full", text.do_full(), rows.full_current, "", text.do_full_help(), menu, enabled=here),
        Action("stack.row.up", text.do_up(), partial(rows.move_current, -1), "Alt+Up", text.do_up_help(), menu, enabled=here,
               local=True, icon="up"),
        Action("stack.row.down", text.do_down(), partial(rows.move_current, 1), "Alt+Down", text.do_down_help(), menu, enabled=here,
               local=True, icon="down"),
        Action("stack.row.remove", text.do_remove(), rows.remove_current, "Del", text.do_remove_help(), menu, enabled=here,
               local=True, icon="remove"),
    ]


def _work(studio: "Studio") -> list[Action]:
    queue, menu = studio.queue, text.menu_work()

    def pause() -> None:
        for job in studio.running():
            queue.pause(job.id)

    def resume() -> None:
        for job in studio.resumable():
            queue.resume(job.id)
    return [
        Action("job.pause", text.pause_job(), pause, "", text.pause_job_help(), menu,
               enabled=lambda: bool(studio.running()) or text.idle(), icon="pause"),
        Action("job.resume", text.do_resume(), resume, "", text.do_resume_help(), menu,
               enabled=lambda: bool(studio.resumable()) or text.nothing_to_resume(), icon="play"),
    ]


def _go(studio: "Studio") -> list[Action]:
    menu = text.menu_go()
    return [Action(f"go.{key}", text.workspace(key), partial(studio.window.go, key), f"Ctrl+{number}", text.workspace_help(key), menu, icon=key)
            for number, key in enumerate(WORKSPACES, 1)]


def _view(studio: "Studio") -> list[Action]:
    menu, settings, window = text.menu_view(), studio.settings, studio.window

    def size(by: int) -> None:
        here = min(range(len(TEXT_SIZES)), key=lambda n: abs(TEXT_SIZES[n] - settings.get("text_size")))
        settings.set("text_size", TEXT_SIZES[max(0, min(len(TEXT_SIZES) - 1, here + by))] if by else 1.0)

    def language(code: str) -> None:
        settings.set("language", code)
        window.say(text.language_later())

    def toggle(dock) -> None:
        dock.setVisible(not dock.isVisible())
    return [
        Action("view.palette", text.do_palette(), window.open_palette, "Ctrl+Shift+P", text.do_palette_help(), menu, icon="palette"),
        *(Action(f"view.theme.{mode}", text.theme_name(mode), partial(settings.set, "theme", mode), "", text.do_theme_help(), menu,
                 checked=lambda mode=mode: settings.get("theme") == mode) for mode in theme.MODES),
        Action("view.text.larger", text.do_larger(), partial(size, 1), "Ctrl++", text.do_larger_help(), menu,
               enabled=lambda: settings.get("text_size") < TEXT_SIZES[-1] or text.largest()),
        Action("view.text.smaller", text.do_smaller(), partial(size, -1), "Ctrl+-", text.do_smaller_help(), menu,
               enabled=lambda: settings.get("text_size") > TEXT_SIZES[0] or text.smallest()),
        Action("view.text.normal", text.do_normal(), partial(size, 0), "Ctrl+0", text.do_normal_help(), menu),
        *(Action(f"view.language.{code}", text.language_name(code), partial(language, code), "", text.do_language_help(), menu,
                 checked=lambda code=code: settings.get("language") == code) for code in languages()),
        Action("view.dock.library", text.library(), partial(toggle, window.library), "F9", text.do_dock_help(), menu,
               checked=lambda: window.library.isVisible()),
        Action("view.dock.inspector", text.inspector(), partial(toggle, window.inspector), "F10", text.do_dock_help(), menu,
               checked=lambda: window.inspector.isVisible()),
    ]


def _help(studio: "Studio") -> list[Action]:
    menu = text.menu_help()
    return [
        Action("help.shortcuts", text.do_shortcuts(), partial(_show_shortcuts, studio), "F1", text.do_shortcuts_help(), menu, icon="keyboard"),
        Action("help.about", text.do_about(), partial(_about, studio), "", text.do_about_help(), menu, icon="info"),
    ]


# --- what they do ------------------------------------------------------------------------------

def _row(studio: "Studio"):
    return lambda: studio.mix.list.current() is not None or text.choose_a_row()


def _copy(studio: "Studio") -> None:
    (studio.library.tree if studio.library.tree.hasFocus() else studio.mix.list).copy()


def choose_adapter_folder(studio: "Studio") -> None:
    """Ask for an adapter folder and bring it into the library."""
    folder = QFileDialog.getExistingDirectory(studio.window, text.do_import(), studio.settings.get("last_folder"))
    if folder:
        studio.settings.set("last_folder", str(Path(folder).parent))
        studio.library.bring_in([Path(folder)])


def may_fetch_starter(studio: "Studio") -> bool | str:
    """Not twice: it is here already, or on its way."""
    if studio.catalogue.model(studio.home.models / STARTER_FOLDER) is not None:
        return text.starter_here()
    if any(isinstance(job.spec, FetchSpec) and job.spec.is_starter and job.active for job in studio.queue.jobs()):
        return text.starter_coming()
    return True


def fetch_starter(studio: "Studio") -> None:
    """Put the fetching of the starter model into the queue, or go on with one that was cut off."""
    studio.panel("start").fetch_starter()
    studio.window.say(text.starter_coming())


def _show_shortcuts(studio: "Studio") -> None:
    from studio.views.shortcuts_dialog import ShortcutsDialog
    ShortcutsDialog(studio.actions, studio.window).open()


def _about(studio: "Studio") -> None:
    box = QMessageBox(QMessageBox.Icon.NoIcon, text.do_about(), text.app_name(), parent=studio.window)
    box.setInformativeText(text.about(version=engine.__version__, folder=str(studio.home.root)))
    box.open()
