"""Colours by arithmetic: every text is readable on everything it may stand on, in all three themes."""

from __future__ import annotations

import re

import pytest

from engine.store.resources import resource
from studio.views import theme
from studio.views.theme import CONTRAST, DARK, LIGHT

THEMES = pytest.mark.parametrize("tokens", [LIGHT, DARK, CONTRAST], ids=lambda t: t.name)
TEXTS = ("text", "muted", "accent", "good", "warn", "bad")
SURFACES = ("window", "base", "card", "sunken", "accent_soft")


@pytest.fixture(autouse=True)
def light_again(qapp):
    yield
    theme.apply(qapp, "light")


@THEMES
def test_text_is_readable_everywhere(tokens):
    poor = [(text, ground, round(theme.contrast(getattr(tokens, text), getattr(tokens, ground)), 2)) for text in TEXTS for ground in SURFACES]
    poor += [(text, f"{level}_soft", round(theme.contrast(getattr(tokens, text), getattr(tokens, f"{level}_soft")), 2))
             for level in ("good", "warn", "bad") for text in ("text", level)]
    poor += [("text", mark, round(theme.contrast(tokens.text, getattr(tokens, mark)), 2)) for mark in ("learned_mark", "added_mark")]
    poor += [("on_accent", ground, round(theme.contrast(tokens.on_accent, getattr(tokens, ground)), 2)) for ground in ("accent", "accent_hover")]
    assert [entry for entry in poor if entry[2] < 4.5] == []


@THEMES
def test_lines_and_curves_can_be_seen(tokens):
    for role in ("strong_border", "curve_learned", "curve_unseen", "accent"):
        for ground in ("window", "base", "card"):
            assert theme.contrast(getattr(tokens, role), getattr(tokens, ground)) >= 3, (role, ground)


def test_contrast_agrees_with_the_standard():
    assert theme.contrast("#ffffff", "#000000") == pytest.approx(21)
    assert theme.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("mode", ["light", "dark", "contrast"])
def test_the_whole_program_changes(qapp, mode):
    heard = []
    theme.changed.connect(heard.append)
    theme.apply(qapp, mode, 1.5)
    theme.changed.disconnect(heard.append)
    assert heard == [theme.tokens()] and theme.tokens().name == mode
    assert qapp.palette().window().color().name() == theme.tokens().window
    assert qapp.font().pointSizeF() == 15
    assert "@" not in qapp.styleSheet()


def test_the_style_sheet_uses_roles_and_never_a_colour_of_its_own():
    sheet = (resource("studio.qss")).read_text(encoding="utf-8")
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b|rgb\(", sheet) == []
    for icon in re.findall(r"icons:([\w-]+)\.svg", sheet.replace("@tint", "light") + sheet.replace("@tint", "dark")):
        assert resource(f"icons/{icon}.svg").exists()


def test_icons_take_the_colour_of_their_role(qapp):
    theme.apply(qapp, "dark")
    image = theme.icon("stop", "accent").pixmap(24, 24).toImage()
    opaque = {image.pixelColor(x, y).name() for x in range(image.width()) for y in range(image.height()) if image.pixelColor(x, y).alpha() == 255}
    assert opaque == {theme.tokens().accent}
