"""OSF against the package `peft`, beyond the common table."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import peft as oracle
from torch import nn

import engine
from tests.support.one import One



def test_what_is_left_open_is_chosen_as_in_peft():
    def names(package, model_type):
        model = One(nn.ModuleDict({n: nn.Linear(4, 4) for n in ("q_proj", "v_proj", "fc1", "other")}))
        model.config = SimpleNamespace(model_type=model_type, to_dict=lambda: {"model_type": model_type})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned = package.get_peft_model(model, package.OSFConfig())
        return sorted({n.split(".osf_svd_params")[0] for n, _ in tuned.named_parameters() if "U_low" in n and "default" in n and "svd" in n})

    for model_type in ("llama", "opt", "unheard-of"):
        assert names(engine, model_type) == names(oracle, model_type) != []
