"""Words that come from files are words: no markup in a tooltip, no key in a name."""

from __future__ import annotations

from PySide6.QtGui import QKeySequence
from PySide6.QtWidgets import QMenu

from studio.views import a11y
from studio.views.activity_bar import ActivityBar
from studio.views.mix_panel import MixPanel
from tests.studio.kit import make_adapter


def test_a_cut_text_with_tags_in_it_is_shown_as_it_is(qtbot):
    label = a11y.ElidedLabel("<b>bold</b> " + "and much more " * 20)
    qtbot.addWidget(label)
    label.resize(80, 20)
    assert label.toolTip().startswith("<p>&lt;b&gt;bold") and label.accessibleName().startswith("<b>bold")


def test_an_ampersand_in_a_name_is_no_key(world, qtbot):
    bar = ActivityBar(world.queue_bridge, world.undo, world.home.root)
    qtbot.addWidget(bar)
    bar.resize(1200, 40)
    bar._words = "R&D"
    bar._fit()
    assert bar._what.text() == " R&&D" and bar._what.shortcut() == QKeySequence()


def test_an_ampersand_in_an_adapters_name_is_no_key_in_the_menu(stocked, qtbot):
    make_adapter(stocked.home, stocked.base, "R&D")
    stocked.catalogue.refresh()
    panel = MixPanel(stocked.document, stocked.undo, stocked.catalogue)
    qtbot.addWidget(panel)
    panel.show()
    panel._offer()
    assert any(action.text().startswith("R&&D ") for menu in panel.findChildren(QMenu) for action in menu.actions())
