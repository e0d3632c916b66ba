"""Names and module paths of PEFT's."""

from __future__ import annotations

import importlib
import sys

import pytest
from transformers.utils import is_peft_available

import engine
from engine.compat import install_as_peft
from engine.compat.names import public

peft = install_as_peft()


def test_every_public_name_can_be_imported_and_the_methods_are_ours():
    for name in public():
        assert getattr(peft, name) is not None, name
    assert peft.LoraConfig is engine.LoraConfig and peft.PeftModel is engine.PeftModel
    assert install_as_peft() is sys.modules["peft"] and is_peft_available()


@pytest.mark.parametrize(("path", "name"), [
    ("peft.tuners.lora.layer", "LoraLayer"), ("peft.tuners.tuners_utils", "BaseTunerLayer"), ("peft.utils.other", "ModulesToSaveWrapper"),
    ("peft.utils.save_and_load", "get_peft_model_state_dict"), ("peft.functional", "delete_adapter"), ("peft.optimizers", "create_lorafa_optimizer")])
def test_paths_that_programs_and_transformers_import_from(path, name):
    assert getattr(importlib.import_module(path), name) is not None


def test_what_is_no_name_of_peft_s_is_none_here():
    with pytest.raises(AttributeError, match="no attribute 'LoraConfg'"):
        peft.LoraConfg  # noqa: B018
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("peft.tuners.nonsense")
