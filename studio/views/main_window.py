"""The window: library at the left, workspaces in the middle, inspector at the right, activity at the bottom.

Menus, shortcuts and the command palette are all made from the one registry of actions.
"""

from __future__ import annotations

from PySide6.QtCore import QByteArray, QEvent, QObject, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QAction, QKeySequence, QShortcut
from PySide6.QtWidgets import (QDockWidget, QFrame, QHBoxLayout, QLabel, QMainWindow, QMenu, QScrollArea, QTabWidget, QToolButton,
                               QVBoxLayout, QWidget)

from studio.core.actions import Action, ActionRegistry
from studio.core.settings import Settings
from studio.core.text import frame as text
from studio.views import a11y, notify, theme
from studio.views.palette import Palette

LAYOUT_VERSION = 1


class MainWindow(QMainWindow):
    """The frame round panels that know nothing of each other. ``closing`` and ``painted`` are emitted once."""

    closing = Signal()
    painted = Signal()                     # the first picture stands on the screen

    def __init__(self, settings: Settings, actions: ActionRegistry, *, library: QWidget, inspector: QWidget, activity: QWidget):
        super().__init__()
        self.setWindowTitle(text.app_name())
        self.setDockOptions(QMainWindow.DockOption.AnimatedDocks | QMainWindow.DockOption.AllowTabbedDocks)
        self._settings, self._actions, self.closed, self._ended, self._painted = settings, actions, False, False, False
        self.activity = activity
        self.tabs = a11y.name(QTabWidget(), text.workspaces())
        self.tabs.setDocumentMode(True)
        self.tabs.tabBar().setDrawBase(False)
        self.tabs.setUsesScrollButtons(False)
        a11y.name(self.tabs.tabBar(), text.workspaces())
        self.notices = notify.NoticeArea()
        self.panels: dict[str, QWidget] = {}
        self._holders: dict[str, QScrollArea] = {}
        self._icons: dict[str, str] = {}
        self._titles: dict[str, str] = {}
        centre = QWidget()
        layout = QVBoxLayout(centre)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.tabs, 1)
        layout.addWidget(self.notices)
        self.setCentralWidget(centre)
        bottom = self._dock("activity", text.activity(), activity, Qt.DockWidgetArea.BottomDockWidgetArea)
        bottom.setTitleBarWidget(QWidget())
        bottom.setFeatures(QDockWidget.DockWidgetFeature.NoDockWidgetFeatures)
        self.library = self._dock("library", text.library(), library, Qt.DockWidgetArea.LeftDockWidgetArea)
        self.inspector = self._dock("inspector", text.inspector(), inspector, Qt.DockWidgetArea.RightDockWidgetArea)
        self.palette_box = Palette(actions, self)
        self.palette_box.refused.connect(self.say_refusal)
        self._menus: list[QMenu] = []
        self._shortcuts: list[QShortcut] = []
        actions.subscribe(lambda: self._rebuild.start())
        self._rebuild = QTimer(self, singleShot=True, interval=0)
        self._rebuild.timeout.connect(self.build_menus)
        theme.changed.connect(self._retint)
        self.tabs.currentChanged.connect(self._retint)
        self.tabs.installEventFilter(self)
        self._retint()

    # --- workspaces ---

    def reserve(self, key: str, title: str, icon: str) -> None:
        """Add the place of a workspace at the end of the tabs; `fill` brings its panel."""
        holder = QScrollArea()             # what does not fit scrolls, and a page that grows never squeezes the docks
        holder.setWidgetResizable(True)
        holder.setFrameShape(QFrame.Shape.NoFrame)
        holder.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self._holders[key], self._icons[key], self._titles[key] = holder, icon, title
        place = self.tabs.addTab(holder, theme.icon(icon, "muted"), title)
        self.tabs.tabBar().setTabToolTip(place, f"{title} · Ctrl+{place + 1}")
        self.tabs.tabBar().setAccessibleTabName(place, title)

    def fill(self, key: str, panel: QWidget) -> None:
        """Put a panel into its place; its `said` and `failed` are heard."""
        self.panels[key] = panel
        self._holders[key].setWidget(panel)
        self.listen(panel)
        a11y.quiet_wheels_inside(panel)

    def listen(self, panel: QWidget) -> None:
        """Show what a panel says in the activity bar and its errors as notices."""
        if hasattr(panel, "said"):
            panel.said.connect(self.say)
        if hasattr(panel, "failed"):
            panel.failed.connect(lambda error: notify.show_error(self, error))

    def go(self, key: str) -> None:
        """Show a workspace: start, teach, mix, try, export or queue."""
        self.tabs.setCurrentWidget(self._holders[key])

    def current(self) -> str:
        return next((key for key, holder in self._holders.items() if holder is self.tabs.currentWidget()), "")

    def say(self, words: str) -> None:
        self.activity.say(words)

    def say_refusal(self, why: str) -> None:
        self.say(why or text.not_now())

    # --- actions ---

    def build_menus(self) -> None:
        """Make menus and shortcuts anew from the registry."""
        self.menuBar().clear()
        for old in self._shortcuts:
            old.setEnabled(False)          # it lives until the event loop turns, and would make its successor ambiguous
        for old in (*self._menus, *self._shortcuts):
            old.deleteLater()
        self._menus, self._shortcuts = [], []
        for category in text.MENUS:
            actions = [a for a in self._actions if a.category == category()]
            if actions:
                self._menus.append(self._menu(category(), actions))
        for action in self._actions:
            if action.shortcut and not action.local:
                shortcut = QShortcut(QKeySequence(action.shortcut), self)
                shortcut.activated.connect(lambda id=action.id: self.run(id))
                self._shortcuts.append(shortcut)

    def run(self, id: str) -> None:
        """Do an action, or say why it cannot be done now."""
        if (why := self._actions.execute(id)) is not None:
            self.say_refusal(why)

    def open_palette(self) -> None:
        self.palette_box.open_over(self)

    def _menu(self, title: str, actions: list[Action]) -> QMenu:
        """Its items know shortcuts only as words: the shortcut itself lives in the window, so that a grey item still says why not."""
        menu = self.menuBar().addMenu(title)
        menu.setToolTipsVisible(True)
        rows: list[tuple[QAction, Action]] = []
        group = ""
        for action in actions:
            section = action.id.rpartition(".")[0]
            if group and section != group:
                menu.addSeparator()
            group = section
            words = QKeySequence(action.shortcut).toString(QKeySequence.SequenceFormat.NativeText)
            row = menu.addAction(f"{action.title}\t{words}" if words else action.title)
            row.triggered.connect(lambda _=False, id=action.id: self.run(id))
            row.setCheckable(action.checked is not None)
            row.setStatusTip(action.help)
            rows.append((row, action))

        def refresh() -> None:
            for row, action in rows:
                why = action.refusal()
                row.setEnabled(why is None)
                row.setToolTip(why or action.help)
                if action.checked is not None:
                    row.setChecked(action.checked())
        menu.aboutToShow.connect(refresh)
        return menu

    # --- where it was left ---

    def restore(self) -> None:
        """Place, docks and workspace as they were left; a sensible size at the first start."""
        room = self.screen().availableGeometry()
        self.resize(min(1280, room.width() - 40), min(820, room.height() - 60))
        if self._settings.get("geometry"):
            self.restoreGeometry(QByteArray.fromBase64(self._settings.get("geometry").encode()))
        self.inspector.setVisible(room.width() >= 1200)        # a small screen is for the work first
        if self._settings.get("layout"):
            self.restoreState(QByteArray.fromBase64(self._settings.get("layout").encode()), LAYOUT_VERSION)
        if self._settings.get("tab") in self._holders:
            self.go(self._settings.get("tab"))

    def remember(self) -> None:
        values = self._settings.values
        values.geometry = bytes(self.saveGeometry().toBase64()).decode()
        values.layout = bytes(self.saveState(LAYOUT_VERSION).toBase64()).decode()
        values.tab = self.current()
        self._settings.save()

    def closeEvent(self, event) -> None:   # noqa: N802 (Qt's name)
        if not self.closed:
            self.closed = True
            self.closing.emit()
        event.setAccepted(self._ended or not self.isVisible())

    def paintEvent(self, event) -> None:   # noqa: N802
        super().paintEvent(event)
        if not self._painted:
            self._painted = True
            QTimer.singleShot(0, self, self.painted.emit)

    def wait_for_end(self) -> None:
        """Stay and be read, but do nothing more: what runs is being saved."""
        for part in (self.tabs, self.library, self.inspector, self.menuBar()):
            part.setEnabled(False)

    def end(self) -> None:
        """Go now."""
        self._ended = True
        self.close()

    # --- small things ---

    def _dock(self, name: str, title: str, widget: QWidget, area: Qt.DockWidgetArea) -> QDockWidget:
        dock = QDockWidget(title, self)
        dock.setObjectName(name)
        dock.setWidget(widget)
        dock.setTitleBarWidget(_DockTitle(title, dock))
        dock.setFeatures(QDockWidget.DockWidgetFeature.DockWidgetClosable | QDockWidget.DockWidgetFeature.DockWidgetMovable)
        self.addDockWidget(area, dock)
        return dock

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:      # noqa: N802
        if event.type() == QEvent.Type.Resize:
            self._name_tabs()
        return False

    def _name_tabs(self) -> None:
        """All tabs with their names; where these do not fit, only the current one, or none: they speak by icon and tooltip, too."""
        bar = self.tabs.tabBar()
        for named in (set(self._titles), {self.current()}, set()):
            for place, (key, title) in enumerate(self._titles.items()):
                bar.setTabText(place, title if key in named else "")
            if bar.sizeHint().width() + theme.M <= self.tabs.width():      # the style sheet's own room at the left
                return

    def _retint(self, *_) -> None:
        self.tabs.setMinimumSize(min(560, self.fontMetrics().averageCharWidth() * 60), 380)
        side = max(16, self.fontMetrics().height() - 2)
        self.tabs.setIconSize(QSize(side, side))
        for key, holder in self._holders.items():
            self.tabs.setTabIcon(self.tabs.indexOf(holder), theme.icon(self._icons[key], "accent" if key == self.current() else "muted"))
        self._name_tabs()


class _DockTitle(QWidget):
    """The head of a dock: its name and a button that closes it. It can be dragged like Qt's own."""

    def __init__(self, title: str, dock: QDockWidget):
        super().__init__()
        self._close = a11y.name(QToolButton(), text.close_dock(name=title))
        self._close.setToolTip(text.close_dock_help(name=title))
        self._close.clicked.connect(dock.close)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(theme.M, theme.S, theme.S, 0)
        layout.addWidget(theme.look(QLabel(title), "strong"), 1)
        layout.addWidget(self._close)
        theme.changed.connect(self._retint)
        self._retint()

    def _retint(self, *_) -> None:
        self._close.setIcon(theme.icon("close", "muted"))
