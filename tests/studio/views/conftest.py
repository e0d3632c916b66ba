"""A world for panels: a small library, a real queue with scripted work, a talk with scripted answers, the light theme."""

import sys

import pytest

from studio.views import theme
from studio.views.teach_panel import TeachPanel
from tests.studio.kit import World, make_adapter, make_model


@pytest.fixture
def world(tmp_path, qapp, qtbot):
    """An empty home. Everything that was built on it is taken down afterwards, in the order in which Qt likes it."""
    theme.apply(qapp, "light")
    made = World(tmp_path / "home")
    yield made
    made.close()
    qapp.processEvents()


@pytest.fixture
def stocked(world):
    """A home with one model and two adapters that fit it."""
    world.base = make_model(world.home)
    world.shop = make_adapter(world.home, world.base)
    world.keeper = make_adapter(world.home, world.base, "Lighthouse keeper")
    world.catalogue.refresh()
    return world


@pytest.fixture
def teach(stocked, qtbot):
    """The panel Teach, shown, on its first step."""
    panel = TeachPanel(stocked.home, stocked.catalogue, stocked.queue_bridge, stocked.talk_bridge, stocked.settings)
    qtbot.addWidget(panel)
    panel.resize(900, 760)
    panel.show()
    return panel


@pytest.fixture(autouse=True)
def no_torch():
    """The window's process never loads the engine's heavy half because of a panel."""
    before = "torch" in sys.modules
    yield
    assert before or "torch" not in sys.modules
