"""Every name that the engine offers can be had, and says what it is."""

from __future__ import annotations

import inspect

import pytest

import engine


@pytest.mark.parametrize("name", engine.__all__)
def test_a_public_name_says_what_it_is(name):
    thing = getattr(engine, name)
    own = thing.__dict__.get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert own and own.strip() and not own.startswith(f"{name}("), f"{name} has no words of its own"


def test_what_is_no_public_name_is_none():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        engine.Nothing  # noqa: B018
    assert set(engine.__all__) <= set(dir(engine))
