"""Any method may be taught from a file of examples, without a setting of its own; what needs more is refused before anything is loaded."""

import pytest
import torch

from engine import PeftModel
from engine.bases.load import load_model
from engine.errors import InvalidSpec
from engine.events import Step
from engine.methods import registry
from engine.store.runs import RunFolder
from engine.train import finish, loop, prepare, train
from engine.train.presets import adapter_config

SMALL = {                                  # what is too large for a model of 48 numbers a token, or has to be named
    "C3A": {"block_size": 8}, "MISS": {"r": 8}, "PSOFT": {"r": 8}, "ROAD": {"group_size": 8}, "SHIRA": {"r": 2},
    "VBLORA": {"vector_length": 8, "num_vectors": 16}, "WAVEFT": {"n_frequency": 100}, "FOURIERFT": {"n_frequency": 100},
    "CPT": {"cpt_token_ids": [5, 6, 7, 8]}, "TRAINABLE_TOKENS": {"token_indices": [1, 2, 10]},
}
BY_TASK = {"MULTITASK_PROMPT_TUNING", "POLY"}
NEED_MORE = {*BY_TASK, "CPT", "XLORA", "TRAINABLE_TOKENS"}
CHOICES = {name: SMALL.get(name, {}) for name in registry.names() if name not in {*BY_TASK, "XLORA"}} | {"LORA, as DoRA": {"use_dora": True}}


def answers(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 23)[None]).logits[:, -20:]


@pytest.mark.parametrize("choice", CHOICES)
def test_it_is_taught_and_its_file_answers_as_the_student_did(make_spec, tmp_path, monkeypatch, choice):
    spec = make_spec(rows=8, method=choice.partition(",")[0], method_config=CHOICES[choice], passes=2, holdout=0.0, learning_rate=2e-2)
    said, place = [], finish.place

    def listening(spec, run, model, *rest):
        said.append(answers(model))
        return place(spec, run, model, *rest)

    monkeypatch.setattr(finish, "place", listening)
    errors = [event.error for event in train(spec, RunFolder.create(tmp_path / "run", spec)) if isinstance(event, Step)]
    base = load_model(spec.base)
    plain = answers(base)
    from_file = answers(PeftModel.from_pretrained(base, spec.out))
    assert len(errors) == 4 and not torch.allclose(said[0], plain, atol=1e-4)
    torch.testing.assert_close(from_file, said[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", sorted(NEED_MORE))
def test_what_needs_more_than_examples_is_refused_before_anything_is_loaded(make_spec, tmp_path, monkeypatch, method):
    monkeypatch.setattr(prepare, "load_model", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    monkeypatch.setattr(prepare, "load", lambda *args, **kwargs: pytest.fail("the examples were read"))
    spec = make_spec(method=method, method_config={})
    with pytest.raises(InvalidSpec, match="cannot be taught from examples alone"):
        list(train(spec, RunFolder.create(tmp_path / "run", spec)))


def test_a_prompt_has_no_layers_to_be_put_into(make_spec, tmp_path):
    spec = make_spec(method="PREFIX_TUNING", method_config={"target_modules": "all-linear"})
    with pytest.raises(InvalidSpec, match="cannot be used.*target_modules"):
        list(train(spec, RunFolder.create(tmp_path / "run", spec)))


def test_a_timetable_is_as_long_as_the_training(make_spec):
    spec = make_spec(method="ADALORA", method_config={})
    model = loop.load_student(spec, prepare.choose("float32", "cpu"), 40)
    settings = model.peft_config["default"]
    assert (settings.tinit, settings.tfinal, settings.total_step) == (4, 12, 40)
    own = adapter_config(make_spec(method="ADALORA", method_config={"total_step": 7, "tfinal": 2}), 40)
    assert (own.tinit, own.tfinal, own.total_step) == (0, 2, 7)
