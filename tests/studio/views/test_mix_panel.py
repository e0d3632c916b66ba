"""The stack under hand: each drop and its keyboard twin make the same document; sliders, wheel, undo."""

from __future__ import annotations

import pytest
from PySide6.QtCore import QMimeData, QPoint, QPointF, QUrl, Qt
from PySide6.QtGui import QDragEnterEvent, QDragMoveEvent, QDropEvent, QWheelEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QHBoxLayout, QWidget

from studio.models import drag
from studio.models.background import Background
from studio.models.library_model import KIND
from studio.views import a11y
from studio.views.library_panel import LibraryPanel
from studio.views.mix_panel import MixPanel
from tests.studio.kit import World, make_adapter, make_model


class Bench(QWidget):
    """Library and stack side by side, as in the window."""

    def __init__(self, root):
        super().__init__()
        self.world = World(root)
        base = make_model(self.world.home)
        for name in "abc":
            make_adapter(self.world.home, base, name)
        make_adapter(self.world.home, make_model(self.world.home, "Wide", hidden=64), "wide", hidden=64)
        self.world.catalogue.refresh()
        self.background = Background()
        self.mix = MixPanel(self.world.document, self.world.undo, self.world.catalogue)
        self.library = LibraryPanel(self.world.catalogue, self.background, self.mix.add, list)
        self.said: list[str] = []
        self.mix.said.connect(self.said.append)
        self.mix.list.refused.connect(self.said.append)
        layout = QHBoxLayout(self)
        layout.addWidget(self.library)
        layout.addWidget(self.mix)
        self.resize(1100, 700)

    @property
    def names(self) -> str:
        return "".join(e.name for e in self.world.document.entries)

    def path(self, name: str):
        return self.world.home.adapters / name

    def put(self, names: str) -> None:
        self.mix.add([self.path(n) for n in names])
        QApplication.processEvents()

    def choose(self, name: str) -> None:
        self.library.select(self.path(name))
        self.library.tree.setFocus()

    def row(self, name: str):
        return self.mix.list.row(next(e.id for e in self.world.document.entries if e.name == name))

    def key(self, key, modifier=Qt.KeyboardModifier.NoModifier) -> None:
        QTest.keyClick(self.mix.list, key, modifier)

    def current(self, name: str) -> None:
        self.mix.list.setFocus()
        self.mix.list.setCurrentIndex(self.mix.model.index(self.names.index(name)))

    def drop(self, mime: QMimeData, before: int | None = None) -> bool:
        """Enter, move and drop on the stack's viewport, before this row (None: below all). Returns whether it was taken."""
        target = self.mix.list.viewport()
        count = self.mix.model.rowCount()
        point = QPoint(40, target.height() - 5)
        if before is not None and before < count:
            point = self.mix.list.visualRect(self.mix.model.index(before)).topLeft() + QPoint(40, 3)
        actions = Qt.DropAction.CopyAction | Qt.DropAction.MoveAction
        for make, at in ((QDragEnterEvent, point), (QDragMoveEvent, point), (QDropEvent, QPointF(point))):
            event = make(at, actions, mime, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier)
            QApplication.sendEvent(target, event)
            if not event.isAccepted():
                return False
        QApplication.processEvents()
        return True


@pytest.fixture
def bench(tmp_path, qtbot):
    made = Bench(tmp_path / "home")
    qtbot.addWidget(made)
    with qtbot.waitActive(made):
        made.show()
        made.activateWindow()
    yield made
    made.background.close()
    made.world.close()


def add_by_drop(bench):
    index = next(bench.library.tree.model().index(r, 0, bench.library.tree.model().index(0, 0)) for r in range(3))
    assert index.data(KIND) == "adapter" and index.data() == "a"
    assert bench.drop(bench.library.model.mimeData([index]))


def add_by_enter(bench):
    bench.choose("a")
    QTest.keyClick(bench.library.tree, Qt.Key.Key_Return)


def add_by_clipboard(bench):
    bench.choose("a")
    QTest.keyClick(bench.library.tree, Qt.Key.Key_C, Qt.KeyboardModifier.ControlModifier)
    bench.mix.list.setFocus()
    bench.key(Qt.Key.Key_V, Qt.KeyboardModifier.ControlModifier)


def move_by_drop(bench):
    bench.drop(bench.mix.model.mimeData([bench.mix.model.index(2)]), before=1)


def move_by_key(bench):
    bench.current("c")
    bench.key(Qt.Key.Key_Up, Qt.KeyboardModifier.AltModifier)


def move_first_by_drop(bench):
    bench.drop(bench.mix.model.mimeData([bench.mix.model.index(0)]), before=None)


def move_first_by_key(bench):
    bench.current("a")
    for _ in range(4):
        bench.key(Qt.Key.Key_Down, Qt.KeyboardModifier.AltModifier)


def remove_by_button(bench):
    bench.row("b").remove.click()


def remove_by_key(bench):
    bench.current("b")
    bench.key(Qt.Key.Key_Delete)


def switch_by_mouse(bench):
    bench.row("b").switch.click()


def switch_by_key(bench):
    bench.current("b")
    bench.key(Qt.Key.Key_Space)


def strength_by_slider(bench):
    bench.row("b").slider.setValue(95)


def strength_by_key(bench):
    bench.current("b")
    bench.key(Qt.Key.Key_Left)


def strength_by_typing(bench):
    box = bench.row("b").box
    box.setFocus()
    box.selectAll()
    QTest.keyClicks(box, "95")
    QTest.keyClick(box, Qt.Key.Key_Return)


TWINS = [("", [add_by_drop, add_by_enter, add_by_clipboard], "a"), ("abc", [move_by_drop, move_by_key], "acb"),
         ("abc", [move_first_by_drop, move_first_by_key], "bca"), ("abc", [remove_by_button, remove_by_key], "ac"),
         ("abc", [switch_by_mouse, switch_by_key], "abc"), ("abc", [strength_by_slider, strength_by_key, strength_by_typing], "abc")]


@pytest.mark.parametrize("names, way, others, result", [(names, way, ways, result) for names, ways, result in TWINS for way in ways],
                         ids=lambda value: getattr(value, "__name__", None))
def test_every_hand_movement_has_a_keyboard_twin(bench, names, way, others, result):
    """All ways lead to the same document, and one undo leads back."""
    bench.put(names)
    before = bench.world.document.to_json()
    documents = []
    for each in others:
        each(bench)
        documents.append([(e.name, e.strength, e.enabled) for e in bench.world.document.entries])
        assert bench.names == result
        while bench.world.document.to_json() != before:
            bench.world.undo.undo()
            QApplication.processEvents()
    assert all(document == documents[0] for document in documents) and documents[0] != [(n, 1.0, True) for n in names]


def test_what_cannot_be_dropped_says_why_while_it_hovers(bench):
    bench.put("a")
    assert not bench.drop(drag.pack(adapters=[bench.path("wide")]))
    assert bench.names == "a" and "does not fit" in bench.said[-1]


def test_a_drag_of_the_slider_is_heard_at_once_and_undone_at_once(bench):
    bench.put("a")
    slider, heard = bench.row("a").slider, []
    bench.world.document.changed.connect(lambda change: heard.append(bench.world.document.entries[0].strength))
    steps = len(bench.world.undo)
    slider.setSliderDown(True)
    for value in (90, 70, 40):
        slider.setValue(value)
    slider.setSliderDown(False)
    assert heard == [0.9, 0.7, 0.4] and len(bench.world.undo) == steps + 1
    assert bench.row("a").box.value() == 40
    bench.world.undo.undo()
    assert slider.value() == 100 and bench.row("a").box.value() == 100


def wheel(widget, delta=-120) -> bool:
    centre = QPointF(widget.rect().center())
    event = QWheelEvent(centre, QPointF(widget.mapToGlobal(widget.rect().center())), QPoint(), QPoint(0, delta), Qt.MouseButton.NoButton,
                        Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase, False)
    QApplication.sendEvent(widget, event)
    return event.isAccepted()


@pytest.mark.parametrize("control", ["slider", "box"])
def test_a_wheel_changes_a_value_only_with_the_focus(bench, control):
    bench.put("a")
    widget = getattr(bench.row("a"), control)
    bench.library.search.setFocus()
    wheel(widget)
    assert bench.world.document.entries[0].strength == 1.0
    widget.setFocus()
    wheel(widget)
    assert bench.world.document.entries[0].strength < 1.0


def test_the_list_scrolls_by_the_wheel_that_a_slider_refused(bench):
    """Qt hands a refused wheel of a real mouse on to the parents (not one that a test makes), so each of them is asked in turn."""
    for name in "defghijklmno":
        make_adapter(bench.world.home, bench.world.home.models / "Tiny-Instruct", name)
    bench.world.catalogue.refresh()
    bench.put("abcdefghijklmno")
    bench.library.search.setFocus()
    bar, widget = bench.mix.list.verticalScrollBar(), bench.row("a").slider
    bar.setValue(0)
    while not wheel(widget):
        widget = widget.parentWidget()
    assert widget is bench.mix.list.viewport() and bar.value() > 0


@pytest.mark.parametrize("control", ["slider", "box"])
def test_a_double_click_is_100_percent(bench, control):
    bench.put("a")
    bench.row("a").slider.setValue(30)
    widget = getattr(bench.row("a"), control)
    QTest.mouseDClick(widget.lineEdit() if control == "box" else widget, Qt.MouseButton.LeftButton)
    assert bench.world.document.entries[0].strength == 1.0


def test_numbers_are_read_as_the_country_writes_them(bench):
    from PySide6.QtCore import QLocale
    bench.put("a")
    box = bench.row("a").box
    box.setLocale(QLocale("de_DE"))
    box.setFocus()
    box.selectAll()
    QTest.keyClicks(box, "62,5")
    QTest.keyClick(box, Qt.Key.Key_Return)
    assert bench.world.document.entries[0].strength == 0.625 and box.text() == "62,5 %"
    assert '"strength": 0.625' in bench.world.document.to_json()


def test_beyond_the_slider_only_in_advanced(bench):
    bench.put("a")
    slider = bench.row("a").slider
    assert (slider.minimum(), slider.maximum()) == (0, 150)
    bench.mix.wide.setChecked(True)
    slider.setValue(-40)
    assert bench.world.document.entries[0].strength == -0.4
    bench.mix.wide.setChecked(False)
    assert bench.world.document.entries[0].strength == -0.4 and bench.row("a").box.value() == -40


def test_a_folder_from_outside_is_handed_on_with_its_place(bench, tmp_path, qtbot):
    bench.put("ab")
    folder = tmp_path / "down"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(folder))])
    with qtbot.waitSignal(bench.mix.files) as caught:
        assert bench.drop(mime, before=1)
    assert caught.args == [[folder], 1]


def test_every_control_has_words_and_is_reached_by_tab(bench):
    bench.put("ab")
    assert a11y.unnamed(bench) == []
    reached, start = set(), bench.library.search
    start.setFocus()
    for _ in range(60):
        QTest.keyClick(QApplication.focusWidget(), Qt.Key.Key_Tab)
        reached.add(QApplication.focusWidget())
    rows = [bench.row("a"), bench.row("b")]
    wanted = [control for row in rows for control in row.controls()] + [bench.library.tree, bench.mix.list, bench.mix.base, bench.mix.add_button,
                                                                     bench.mix.try_button, bench.mix.wide]
    assert [a11y_name(w) for w in wanted if w not in reached] == []


def a11y_name(widget) -> str:
    return widget.accessibleName() or type(widget).__name__


def test_the_sentence_says_what_is_heard(bench):
    assert "Choose a model" in bench.mix.heard.text()
    bench.put("ab")
    bench.row("b").switch.click()
    assert bench.mix.heard.text() == "Heard: a at 100\N{NO-BREAK SPACE}%."
    bench.row("a").slider.setValue(0)
    assert "alone" in bench.mix.heard.text() and not bench.mix.export_button.isEnabled()


def test_another_model_lets_misfits_go_and_says_so(bench):
    bench.put("ab")
    bench.mix.base.setCurrentIndex(bench.mix.base.findText("Wide", Qt.MatchFlag.MatchStartsWith))
    bench.mix.base.activated.emit(bench.mix.base.currentIndex())
    assert bench.names == "" and "a, b" in bench.said[-1]
    bench.world.undo.undo()
    assert bench.names == "ab" and bench.mix.base.currentText().startswith("Tiny-Instruct")


def test_in_a_narrow_row_the_slider_gives_way_to_the_number(bench, qapp):
    bench.put("a")
    row = bench.mix.list.row(bench.world.document.entries[0].id)
    for width, there in ((700, True), (250, False), (700, True)):
        row.resize(width, row.height())
        assert row.slider.isVisibleTo(row) is there
        assert row.remove.geometry().left() > row.box.geometry().right() or not there
