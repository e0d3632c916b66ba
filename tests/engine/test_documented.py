"""Every name that the engine offers can be had, and says what it is."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap

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
            own = {key: getattr(f, "__func__", f) for key, f in vars(thing).items() if not key.startswith("_")}     # class methods, too
            yield from ((f"{name}.{key}", f) for key, f in own.items() if inspect.isfunction(f))
            if "__init__" in vars(thing):
                yield name, thing


CALLABLES = dict(callables())


@pytest.mark.parametrize("name", CALLABLES)
def test_every_argument_is_explained(name):
    """By its name, by those that mean the same everywhere, or by a word about where it is explained."""
    thing = CALLABLES[name]
    doc = "\n".join(inspect.getdoc(each) or "" for each in (thing.__mro__ if inspect.isclass(thing) else (thing,)))
    silent = {p.name for p in inspect.signature(thing).parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
              and not re.search(rf"\b{p.name}\b", doc)} - STANDING - {"self", "cls"}
    assert not silent or REFERS.search(doc), f"{name} does not say what {', '.join(sorted(silent))} is"


def test_what_means_the_same_everywhere_is_explained_once():
    doc = "\n".join(inspect.getdoc(thing) or "" for thing in (engine.PeftModel, *vars(engine.PeftModel).values()) if callable(thing))
    assert not [name for name in ("model", "peft_config", "adapter_name", "adapter_names", "low_cpu_mem_usage", "autocast_adapter_dtype")
                if name not in doc]


SOURCE = re.compile(r"PEFT|arXiv|[A-Z]\w+ (et al\.|and \w+) (19|20)\d\d")
SHAPE = re.compile(r"``\([^)]*,[^)]*\)``|scalar")


def words(thing) -> str:
    """A thing's docstring; of a class, with that of what makes it."""
    own = inspect.getdoc(thing) or ""
    return own + (inspect.getdoc(thing.__init__) or "" if inspect.isclass(thing) and "__init__" in vars(thing) else "")


@pytest.mark.parametrize("name", engine.__all__)
def test_a_public_name_says_where_it_comes_from(name):
    """From PEFT, from a paper, or from here: then how PEFT does without."""
    thing = getattr(engine, name)
    inherited = [each.__doc__ or "" for each in thing.__mro__ if each.__module__.startswith("engine.")] if inspect.isclass(thing) else []
    assert SOURCE.search(" ".join([words(thing), *inherited[:1]]))


@pytest.mark.parametrize("name", CALLABLES)
def test_what_is_raised_is_said(name):
    """Every error that the body itself raises, by its name."""
    thing = CALLABLES[name]
    body = thing.__init__ if inspect.isclass(thing) else inspect.unwrap(thing)
    tree = ast.parse(textwrap.dedent(inspect.getsource(body)))
    raises = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    raised = {ast.unparse(error.func).rpartition(".")[2] for error in raises if isinstance(error, ast.Call)}
    silent = {each for each in raised if not re.search(rf"\b{each}\b", words(thing))} - {"NotImplementedError"}
    assert not silent, f"{name} does not say that it raises {', '.join(sorted(silent))}"


@pytest.mark.parametrize("name", CALLABLES)
def test_tensors_have_shapes(name):
    """What takes or gives tensors says how they lie; what passes the model's own inputs on leaves that to the model."""
    signature = inspect.signature(CALLABLES[name])
    kinds = [str(p.annotation) for p in signature.parameters.values()] + [str(signature.return_annotation)]
    if any(re.match(r"(torch\.)?Tensor\b", kind) for kind in kinds):
        assert SHAPE.search(words(CALLABLES[name])) or REFERS.search(words(CALLABLES[name]))
