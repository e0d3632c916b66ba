"""The words of the centre panels: all in German too, and amounts as a person would say them."""

import json

from engine.store.resources import resource
from studio.core import text
from studio.core.text import amounts, teach
from tests.studio.core.test_text import phrases


def test_german_leaves_no_sentence_of_any_panel_out():
    assert set(phrases()) - set(json.loads((resource("translations") / "de.json").read_text(encoding="utf-8"))) == set()


def test_a_language_changes_what_panels_say_from_then_on():
    try:
        text.use("de")
        assert teach.STEPS["data"]() == "Daten" and amounts.left(240) == "noch etwa 4 min" and teach.EXAMPLES(1) == "1 Beispiel"
    finally:
        text.use("en")
    assert amounts.left(240) == "about 4 min left" and amounts.left(None) == ""
