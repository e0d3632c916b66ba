"""What holds for every centre panel: named controls, reached by Tab, nothing loose, every theme, large text, a narrow window."""

import pytest
from PySide6.QtCore import QCoreApplication, QEvent, Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QAbstractButton, QAbstractSpinBox, QApplication, QComboBox, QLineEdit, QPlainTextEdit, QSlider, QTableView

from engine import specs
from studio.core.stack_commands import AddAdapter
from studio.views import a11y, theme
from studio.views.export_panel import ExportPanel
from studio.views.queue_panel import QueuePanel
from studio.views.start_panel import StartPanel
from studio.views.teach_panel import STEPS, TeachPanel
from studio.views.try_panel import TryPanel

PANELS = {
    "start": lambda w: StartPanel(w.home, "2 cores, 24 GB memory.", None, w.catalogue, w.queue_bridge),
    **{step: lambda w, s=step: teach(w, s) for step in STEPS},
    "try": lambda w: TryPanel(w.document, w.talk_bridge, w.catalogue, w.undo, w.home),
    "export": lambda w: ExportPanel(w.home, w.document, w.catalogue, w.queue_bridge),
    "queue": lambda w: QueuePanel(w.queue_bridge)}


def teach(w, step):
    panel = TeachPanel(w.home, w.catalogue, w.queue_bridge, w.talk_bridge, w.settings)
    panel.start_sample()
    w.settle()
    panel.plan.advanced.open()
    w.settle()
    panel.show_step(step)
    return panel


@pytest.fixture(params=list(PANELS))
def panel(request, stocked, qtbot):
    w = stocked
    w.undo.push(AddAdapter(w.shop, "Shop answers", base=w.base))
    w.queue.submit(specs.TrainSpec(str(w.base), "d.csv", str(w.home.adapters / "x"), prompts=["Hello?"]), "Opening hours")
    w.start()                              # one training that has been, so that lists are not empty
    w.run_all()
    made = PANELS[request.param](w)
    qtbot.addWidget(made)
    made.resize(744, 640)
    made.show()
    w.settle()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    return made


def test_every_control_has_words_and_a_place_and_is_reached_by_tab(panel):
    assert panel.title and a11y.unnamed(panel) == []
    assert [w for w in QApplication.topLevelWidgets() if w.isVisible() and w is not panel] == []
    assert panel.minimumSizeHint().width() <= 744
    panel.activateWindow()
    QTest.qWaitForWindowActive(panel)
    wanted = {w for kind in (QAbstractButton, QComboBox, QLineEdit, QPlainTextEdit, QSlider, QTableView) for w in panel.findChildren(kind)
              if w.isVisible() and w.isEnabled() and w.focusPolicy() != Qt.FocusPolicy.NoFocus
              and not isinstance(w.parentWidget(), (QComboBox, QAbstractSpinBox))}
    reached = set()
    for _ in range(4 * len(wanted) + 8):
        panel.focusNextChild()
        reached.add(QApplication.focusWidget())
    lost = [w for w in wanted - reached if not _by_arrows(w, reached)]
    assert not lost, [(type(w).__name__, w.accessibleName()) for w in lost]


def _by_arrows(widget, reached) -> bool:
    """Tab comes to one button of an exclusive group, the arrows lead to the rest."""
    group = widget.group() if isinstance(widget, QAbstractButton) else None
    return group is not None and group.exclusive() and bool(set(group.buttons()) & reached)


def test_theme_and_text_size_may_change_under_it(panel, qapp):
    before = panel.grab().toImage()
    for mode, size in (("dark", 1.0), ("light", 1.8)):
        theme.apply(qapp, mode, size)
        qapp.processEvents()
        after = panel.grab().toImage()
        assert after != before
        before = after
    theme.apply(qapp, "light")
