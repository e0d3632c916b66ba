"""A slot is a whole module, though it has most of one only once that is asked for."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import nn

from engine.hosts.shelves import Slot


def slot() -> Slot:
    made = Slot()
    made.put("0.weight", nn.Parameter(torch.ones(2), requires_grad=False))
    made.put("rows", torch.arange(3))
    return made


def test_a_hook_on_one_slot_is_on_no_other():
    first, second, heard = slot(), slot(), []
    first.register_state_dict_pre_hook(lambda *_: heard.append("first"))
    second.state_dict()
    assert not heard and vars(nn.Module()).keys() <= set(dir(second))
    first.state_dict()
    assert heard == ["first"]


def test_it_is_copied_pickled_loaded_and_switched_like_any_module():
    made = slot()
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.state_dict().keys() == {"0.weight", "rows"} and torch.equal(other.state_dict()["rows"], made.rows)
    made.load_state_dict({"0.weight": torch.zeros(2), "rows": torch.zeros(3, dtype=torch.int64)})
    assert not made.eval().training and Slot().training and not made.state_dict()["0.weight"].any()
