"""Every name that the engine offers can be had, and says what it is."""

from __future__ import annotations

import dataclasses
import inspect
import re

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


STANDING = {"model", "peft_model", "config", "peft_config", "adapter_name", "adapter_names", "model_id", "inference_mode",
            "progressbar", "show_progress_bar", "task_ids", "low_cpu_mem_usage", "autocast_adapter_dtype"}      # said once, of `PeftModel`
REFERS = re.compile(r"\b([Aa]s|[Ss]ee|with) (of |in |for )?(its )?(`[\w.]+`|every tuner|PEFT)")


def callables():
    """(name, what is called) of all public functions, and of public classes' constructors and methods; settings explain themselves field by field."""
    for name in engine.__all__:
        thing = getattr(engine, name)
        if inspect.isfunction(thing):
            yield name, thing
        elif inspect.isclass(thing) and not dataclasses.is_dataclass(thing):
            yield from ((f"{name}.{key}", f) for key, f in vars(thing).items() if inspect.isfunction(f) and not key.startswith("_"))
            if "__init__" in vars(thing):
                yield name, thing


CALLABLES = dict(callables())


@pytest.mark.parametrize("name", CALLABLES)
def test_every_argument_is_explained(name):
    """By its name, by those that mean the same everywhere, or by a word about where it is explained."""
    thing = CALLABLES[name]
    doc = "\n".join(inspect.getdoc(each) or "" for each in (thing.__mro__ if inspect.isclass(thing) else (thing,)))
    silent = {p.name for p in inspect.signature(thing).parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
              and not re.search(rf"\b{p.name}\b", doc)} - STANDING - {"self"}
    assert not silent or REFERS.search(doc), f"{name} does not say what {', '.join(sorted(silent))} is"


def test_what_means_the_same_everywhere_is_explained_once():
    doc = "\n".join(inspect.getdoc(thing) or "" for thing in (engine.PeftModel, *vars(engine.PeftModel).values()) if callable(thing))
    assert not [name for name in ("model", "peft_config", "adapter_name", "adapter_names", "low_cpu_mem_usage", "autocast_adapter_dtype")
                if name not in doc]
