"""The table of methods. A new method is one file (see README.md beside this one) and a line here, or it comes in somebody else's package.

Such a package calls `register_method` when it is imported, or names its methods as entry points: then whoever has installed it can use them
everywhere, also in the window and in its worker, and nothing has to be imported first::

    [project.entry-points."adapter_studio.methods"]
    MY_METHOD = "my_package.my_method:METHOD"
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from engine.errors import BadAdapter
from engine.law import Method, PeftConfig
from engine.specs.fields import describe_fields

if TYPE_CHECKING:
    from engine.specs import MethodsReport

_BUILT_IN = {                              # peft_type → the file of the method
    "OFT": "engine.methods.oft",
    "BOFT": "engine.methods.boft",
    "HRA": "engine.methods.hra",
    "ROAD": "engine.methods.road",
    "IA3": "engine.methods.ia3",
    "PROMPT_TUNING": "engine.methods.prompt_tuning",
    "P_TUNING": "engine.methods.p_tuning",
    "PREFIX_TUNING": "engine.methods.prefix_tuning",
    "MULTITASK_PROMPT_TUNING": "engine.methods.multitask_prompt_tuning",
    "CPT": "engine.methods.cpt",
    "CARTRIDGE": "engine.methods.cartridge",
    "ADAPTION_PROMPT": "engine.methods.adaption_prompt",
    "LORA": "engine.methods.lora",
    "LOHA": "engine.methods.loha", "LOKR": "engine.methods.lokr", "C3A": "engine.methods.c3a", "MISS": "engine.methods.miss",
    "GRALORA": "engine.methods.gralora", "DELORA": "engine.methods.delora", "BEFT": "engine.methods.beft", "ADALORA": "engine.methods.adalora",
    "VERA": "engine.methods.vera", "PVERA": "engine.methods.pvera", "RANDLORA": "engine.methods.randlora",
    "FOURIERFT": "engine.methods.fourierft", "WAVEFT": "engine.methods.waveft", "SHIRA": "engine.methods.shira",
    "SUPERTUNING": "engine.methods.supertuning", "VBLORA": "engine.methods.vblora", "UNILORA": "engine.methods.unilora",
    "TINYLORA": "engine.methods.tinylora",
    "ADAMSS": "engine.methods.adamss",
    "HIRA": "engine.methods.hira",
    "GLORA": "engine.methods.glora",
    "DEFT": "engine.methods.deft",
    "OSF": "engine.methods.osf",
    "PSOFT": "engine.methods.psoft",
    "PEANUT": "engine.methods.peanut",
    "FROD": "engine.methods.frod",
    "POLY": "engine.methods.poly", "LILY": "engine.methods.lily", "XLORA": "engine.methods.xlora", "SHADOW": "engine.methods.shadow",
    "LN_TUNING": "engine.methods.ln_tuning", "TRAINABLE_TOKENS": "engine.methods.trainable_tokens",
}
OUTSIDERS = "adapter_studio.methods"       # entry points: peft_type → the `Method`
_RENAMED = {"BONE": "MISS"}               # what PEFT called a method once → what it is now
_VARIANTS = {                              # laws that may be put round a method's, innermost first
    "MISS": ("engine.methods.miss",),
    "LORA": tuple(f"engine.methods.{name}" for name in ("lora_start", "lora_orthogonal", "mica", "loftq", "bdlora", "qalora", "velora",
                                                        "monteclora", "alora", "arrow", "kasa", "dora")),
}
_METHODS: dict[str, Method] = {}


def register_method(method: Method) -> Method:
    """Make a method known under its config's ``peft_type``, which PEFT lets nobody do. Raises `ValueError` if another one has that name."""
    name = method.config.peft_type
    taken = name in _BUILT_IN and type(method).__module__ != _BUILT_IN[name]
    if not name or taken or type(_METHODS.get(name, method)) is not type(method):
        raise ValueError(f"A method named {name!r} is registered already.")
    _METHODS[name] = method
    return method


def method(peft_type: str | None) -> Method:
    """The method of that name. Raises `BadAdapter` for one that is not known."""
    name = getattr(peft_type, "value", peft_type)
    name = _RENAMED.get(name, name)
    if name not in _METHODS and name in _BUILT_IN:
        register_method(import_module(_BUILT_IN[name]).METHOD)
    elif name not in _METHODS and name in _outsiders():
        _METHODS[name] = _loaded(_outsiders()[name])
    if name not in _METHODS:
        raise BadAdapter(f"This adapter is of the kind “{name}”, which this version cannot use." if name else
                         "The adapter does not say of which kind it is.",
                         do=f"Install the package that brings it, if there is one. Known kinds: {', '.join(names())}.")
    return _METHODS[name]


@cache
def _outsiders() -> dict[str, EntryPoint]:
    """Methods of installed packages, by peft_type; a built-in name cannot be taken."""
    return {entry.name: entry for entry in entry_points(group=OUTSIDERS) if entry.name not in _BUILT_IN}


def _loaded(entry: EntryPoint) -> Method:
    """An outsider's method. Raises `BadAdapter` if its package does not give what its entry point promises."""
    package = entry.dist.name if entry.dist else entry.module
    try:
        found = entry.load()
    except Exception as problem:           # whatever somebody else's package does while it is imported
        raise BadAdapter(f"The method “{entry.name}” cannot be used.", f"The package {package}, which brings it, does not work: {problem}",
                         f"Install a newer {package}, or remove it.") from problem
    if getattr(getattr(found, "config", None), "peft_type", "") != entry.name:
        raise BadAdapter(f"The method “{entry.name}” cannot be used.", f"{package} gives something else under that name: {found!r}",
                         f"Install a newer {package}, or remove it.")
    return found


@cache
def _round(peft_type: str, modules: tuple[str, ...]) -> Method:
    """The method with the variants of these modules round it. A variant is a class whose only argument is the law inside it."""
    built = method(peft_type)
    for module in modules:
        built = import_module(module).VARIANT(built)
    return built


def law(config: PeftConfig) -> Method:
    """The law of an adapter with this config: its method, with those variants round it that the config asks for.

    Raises `ValueError` for a prompt, of either kind: it has no law for layers.
    """
    if not isinstance(method(config.peft_type), Method):
        raise ValueError(f"Cannot combine adapters with different peft types: {config.peft_type} is a prompt, it does not sit in layers.")
    return _round(config.peft_type, tuple(m for m in _VARIANTS.get(config.peft_type, ()) if import_module(m).wanted(config)))


def names() -> list[str]:
    return sorted({*_BUILT_IN, *_METHODS, *_outsiders()})


def config_class(peft_type: str | None) -> type[PeftConfig]:
    return method(peft_type).config


def get_peft_config(config_dict: dict[str, Any]) -> PeftConfig:
    """A config from plain data, ``config_dict``, with its ``peft_type`` (PEFT function of the same name).

    Raises:
        BadAdapter: the kind is missing or not known. TypeError: a setting that this kind does not have.
    """
    settings = dict(config_dict)
    return config_class(settings.pop("peft_type", None))(**settings)


def describe() -> "MethodsReport":
    """All methods with their settings as plain data: what forms, command line and docs are made from; outsiders that do not work are left out."""
    from engine.specs import MethodsReport             # costs as much as half of this room

    found = []
    for name in names():
        try:
            law = method(name)
        except BadAdapter as problem:
            warnings.warn(str(problem), stacklevel=2)
            continue
        found.append({"peft_type": name, "title": law.title, "help": law.help, "fields": [f for f in describe_fields(law.config) if f["help"]]})
    return MethodsReport(methods=found)
