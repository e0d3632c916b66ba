"""Every public name of PEFT's is there and takes what PEFT's takes: settings, arguments, their order and what they are if nothing is said."""

from __future__ import annotations

import dataclasses
import inspect

import peft
import pytest
from peft import mapping
from torch import nn

from engine.compat import model as compat
from engine.compat import names

OTHERWISE = {                              # what has no sense here, by PEFT's name
    "CPTEmbedding": {"calculate_loss", "get_epsilon", "get_projection", "set_updated_tokens"},      # a law, not the prompt's
    "CartridgeEncoder": {"embedding", "reset_parameters", "forward"}, "PrefixEncoder": {"forward"},      # called by place
    "PeftMixedModel": {"set_modules_to_save"},                 # a helper of its constructor
}
UNLIKE = {"LoraConfig.runtime_config",     # never in a file; None is PEFT's default of it
          "commit_message", "safe_serialization",              # says something; PEFT does not save mixes
          "PeftModelForTokenClassification.__init__"}          # its only config is no option
VARIABLE = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def functions(name: str, theirs: type, ours: type):
    """(name, PEFT's, ours) of a class's public methods, as far as they are its own and not torch's."""
    for key, member in inspect.getmembers(theirs):
        if key != "__init__" and (key.startswith("_") or (hasattr(nn.Module, key) and key != "forward")) or key in OTHERWISE.get(name, ()):
            continue
        assert hasattr(ours, key) or hasattr(compat.ModelViews, key), f"{name} has no {key}"
        if inspect.isroutine(member):
            yield f"{name}.{key}", member, getattr(ours, key, getattr(compat.ModelViews, key, None))


@pytest.mark.parametrize("name", sorted(peft.__all__))
def test_a_public_name_takes_what_peft_s_takes(name):
    theirs, ours = getattr(peft, name), names.lookup(name)
    if dataclasses.is_dataclass(theirs):
        same_settings(name, theirs, ours)
    elif issubclass(type(theirs), type(peft.PeftType)):
        assert {str(member.value) for member in theirs} <= {str(member.value) for member in ours}
    elif inspect.isclass(theirs) and not issubclass(theirs, (Exception, Warning)) and (
            name not in names._MODELS or name in names._PROMPT_MODELS.values()):
        for each in functions(name, theirs, ours):
            same_arguments(*each)
    elif inspect.isfunction(theirs):
        same_arguments(name, theirs, ours)


def same_settings(name: str, theirs: type, ours: type) -> None:
    expected = {field.name for field in dataclasses.fields(theirs)} - {"peft_type", "peft_version"}
    assert expected <= {field.name for field in dataclasses.fields(ours)}
    try:
        a, b = theirs(), ours()
    except (TypeError, ValueError):        # some cannot be made of nothing
        return
    for field in expected - {"auto_mapping"}:
        if f"{name}.{field}" not in UNLIKE:
            assert plain(getattr(a, field)) == plain(getattr(b, field)), field


def plain(value):
    """As it stands in a file."""
    return str(getattr(value, "value", value))


def same_arguments(name: str, theirs, ours) -> None:
    a, b = inspect.signature(theirs).parameters, inspect.signature(ours).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in b.values())
    lacks = [key for key, p in a.items() if key not in b and p.kind not in VARIABLE]
    assert takes_any or not lacks, f"{name} does not take {lacks}"
    for key in (a.keys() & b.keys()) - UNLIKE if name not in UNLIKE else ():
        before, now = a[key].default, b[key].default
        if before is not inspect.Parameter.empty:
            assert getattr(before, "__name__", before) == getattr(now, "__name__", now), f"{name}({key})"
    by_place = [[key for key, p in each.items() if p.kind is p.POSITIONAL_OR_KEYWORD] for each in (a, b)]
    assert all(x == y for x, y in zip(*by_place)), f"{name}: {by_place}"


def test_what_the_tensors_of_a_method_begin_with():
    assert {str(kind.value): prefix for kind, prefix in mapping.PEFT_TYPE_TO_PREFIX_MAPPING.items()} == {
        str(kind.value): prefix for kind, prefix in names.lookup("PEFT_TYPE_TO_PREFIX_MAPPING").items()}
