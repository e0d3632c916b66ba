"""A list of entries becomes a running stack: order, strengths, reuse, and all or nothing."""

import json

import pytest
import torch

from engine.bases.load import load_model
from engine.errors import BadAdapter, InvalidSpec, WrongBase
from engine.mix.stack import StackOnBase, check_entries
from engine.specs import StackEntry
from engine.store.library import read_model
from tests.support.adapters import make_adapter
from tests.support.tiny import save_base

IDS = torch.tensor([[5, 9, 40, 77, 120]])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    root = tmp_path_factory.mktemp("shelf")
    base = save_base(root / "base")
    return {"root": root, "base": base, "a": make_adapter(root / "style", base, 1),
            "b": make_adapter(root / "facts.v2", base, 2, r=2, use_rslora=True), "c": make_adapter(root / "keys", base, 3, r=3)}


@pytest.fixture
def stack(shelf):
    return StackOnBase(load_model(shelf["base"]), read_model(shelf["base"]))


def entries(shelf, **strengths):
    return [StackEntry(str(shelf[key]), strength) for key, strength in strengths.items()]


def logits(stack):
    with torch.no_grad():
        return stack.model(input_ids=IDS).logits


def test_an_empty_stack_is_the_plain_base_itself(shelf, stack):
    plain = stack.model
    before = logits(stack)
    stack.arrange(entries(shelf, a=1.0))
    assert not torch.allclose(logits(stack), before)
    stack.arrange([])
    assert stack.model is plain and torch.equal(logits(stack), before) and stack.stamp() == []


def test_the_stamp_is_order_fingerprint_and_strength(shelf, stack):
    stack.arrange([StackEntry(str(shelf["b"]), 0.5), StackEntry(str(shelf["a"]), 2.0, enabled=False)])
    prints = [info.fingerprint for info in check_entries(stack.base, entries(shelf, b=1, a=1))]
    assert [row[1:] for row in stack.stamp()] == [[prints[0], 0.5], [prints[1], 0.0]]
    assert stack.model.stack.names == ["facts-v2", "style"]       # names that modules can have, in the stack's order


def test_exchanging_a_stack_keeps_what_stays_and_equals_a_fresh_one(shelf, stack):
    stack.arrange(entries(shelf, a=1.0, b=0.5))
    kept = next(iter(stack.model.adapted.values())).tensors("style")["lora_A.weight"]
    stack.arrange(entries(shelf, c=0.3, a=0.7))
    assert next(iter(stack.model.adapted.values())).tensors("style")["lora_A.weight"] is kept
    assert sorted(stack.model.peft_config) == ["keys-adapter", "style"]
    fresh = StackOnBase(load_model(shelf["base"]), stack.base)
    fresh.arrange(entries(shelf, c=0.3, a=0.7))
    torch.testing.assert_close(logits(stack), logits(fresh))


def test_the_same_adapter_twice_is_its_strengths_added(shelf, stack):
    stack.arrange([StackEntry(str(shelf["a"]), 0.4), StackEntry(str(shelf["a"]), 0.6)])
    twice = logits(stack)
    stack.arrange(entries(shelf, a=1.0))
    torch.testing.assert_close(twice, logits(stack), atol=1e-4, rtol=1e-4)


def test_an_adapter_trained_anew_in_the_same_folder_is_read_anew(shelf, stack, tmp_path):
    folder = make_adapter(tmp_path / "mine", shelf["base"], 7)
    stack.arrange([StackEntry(str(folder))])
    old = logits(stack)
    make_adapter(folder, shelf["base"], 8)
    stack.arrange([StackEntry(str(folder))])
    assert not torch.allclose(old, logits(stack))


def test_strengths_are_by_position_and_must_be_as_many(shelf, stack):
    stack.arrange(entries(shelf, a=1.0, b=1.0))
    stack.set_strengths([0.0, 0.25])
    assert [row[2] for row in stack.stamp()] == [0.0, 0.25]
    for wrong in ([1.0], [1.0, float("nan")]):
        with pytest.raises(InvalidSpec):
            stack.set_strengths(wrong)
    assert [row[2] for row in stack.stamp()] == [0.0, 0.25]


def _other_base(root):
    return make_adapter(root / "elsewhere", save_base(root / "other", seed=9), 4)


def _other_size(root):
    return make_adapter(root / "larger", save_base(root / "large", hidden=64), 4, recipe=False)


def _deeper(root):
    return make_adapter(root / "deep", save_base(root / "three", layers=3), 4, recipe=False)


def _missing(root):
    return root / "nowhere"


def _half(root):
    from safetensors.torch import load_file, save_file

    folder = make_adapter(root / "half", save_base(root / "again"), 4, recipe=False)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(dict(list(tensors.items())[:5]), folder / "adapter_model.safetensors")
    return folder


def _impossible(root):
    folder = make_adapter(root / "zero", save_base(root / "again"), 4, recipe=False)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 0}))
    return folder


@pytest.mark.parametrize("make, error, words", [
    (_other_base, WrongBase, "another model"), (_other_size, WrongBase, "does not fit"), (_deeper, (WrongBase, BadAdapter), ""),
    (_missing, BadAdapter, "does not exist"), (_half, BadAdapter, "part"), (_impossible, BadAdapter, "impossible")])
def test_what_does_not_fit_changes_nothing(shelf, stack, tmp_path, make, error, words):
    bad = make(tmp_path)
    for good in ([], entries(shelf, a=0.5)):
        stack.arrange(good)
        before, stamp, modules = logits(stack), stack.stamp(), [name for name, _ in stack.model.named_modules()]
        with pytest.raises(error) as caught:
            stack.arrange([*entries(shelf, b=1.0), StackEntry(str(bad))])
        assert words in str(caught.value) and "Traceback" not in str(caught.value)
        assert torch.equal(logits(stack), before) and stack.stamp() == stamp
        assert [name for name, _ in stack.model.named_modules()] == modules
