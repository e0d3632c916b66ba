"""Methods that look at the base: streamed from files, where the weights are not there yet, they merge to what runs."""

from __future__ import annotations

import pytest
import torch

import engine
from engine.bases.load import load_model
from engine.errors import UnsupportedLayer
from engine.events import Note
from engine.merge.plan import plan_merge
from engine.merge.stream import merge_into
from engine.mix.stack import StackOnBase
from engine.specs import StackEntry
from engine.store.library import read_model
from tests.engine.merge.test_stream import logits, save_gpt2
from tests.support.tiny import save_base

KINDS = {
    "hira": ("HiraConfig", {"r": 4}), "glora": ("GloraConfig", {"r": 2}), "deft": ("DeftConfig", {"r": 4, "decomposition_method": "qr"}),
    "psoft": ("PsoftConfig", {"r": 8}), "osf": ("OSFConfig", {}), "peanut": ("PeanutConfig", {"r": 4, "depth": 1}),
    "frod": ("FrodConfig", {"sparse_rate": 0.05}), "frod-made-again": ("FrodConfig", {"sparse_rate": 0.05, "save_projection": False}),
    "adamss": ("AdamssConfig", {"r": 8, "num_subspaces": 3}), "kasa": ("LoraConfig", {"r": 4, "kasa_config": {"beta": 1e-4}}),
}
# these need several weights at once, or a weight and its bias
IN_MEMORY = {("tied", "frod-made-again"), ("gpt2", "frod-made-again"), ("gpt2", "glora"), ("gpt2", "adamss")}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {"tied": save_base(root / "tied"), "gpt2": save_gpt2(root / "gpt2")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", ["tied", "gpt2"])
def test_streamed_is_running(bases, tmp_path, base, kind):
    name, settings = KINDS[kind]
    settings = {"target_modules": ["q_proj", "down_proj"] if base == "tied" else ["c_attn"], "task_type": "CAUSAL_LM", **settings}
    torch.manual_seed(0)
    tuned = engine.get_peft_model(load_model(bases[base]), getattr(engine, name)(**settings))
    with torch.no_grad():
        for parameter in (p for p in tuned.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.2)
    tuned.save_pretrained(tmp_path / "adapter")
    entries = [StackEntry(str(tmp_path / "adapter"), 0.8)]
    running = StackOnBase(load_model(bases[base]), read_model(bases[base]))
    running.arrange(entries)
    (tmp_path / "out").mkdir()
    events = list(merge_into(tmp_path / "out", plan_merge(read_model(bases[base]), entries)))
    assert bool([e for e in events if isinstance(e, Note)]) == ((base, kind) in IN_MEMORY)
    streamed = load_model(tmp_path / "out")
    torch.testing.assert_close(logits(streamed), logits(running.model), atol=2e-3, rtol=1e-3)
    assert not torch.allclose(logits(streamed), logits(load_model(bases[base])), atol=0.02)


@pytest.mark.parametrize(("name", "settings"), [("BeftConfig", {}), ("LoraConfig", {"r": 2, "lora_bias": True})])
def test_a_bias_goes_into_no_files_that_have_no_place_for_it(bases, tmp_path, name, settings):
    """A Llama's linear layers have none: whoever read the files would leave it out."""
    made = getattr(engine, name)(target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)
    engine.get_peft_model(load_model(bases["tied"]), made).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UnsupportedLayer, match="gives the layer model.layers.0.self_attn.q_proj a bias"):
        plan_merge(read_model(bases["tied"]), [StackEntry(str(tmp_path / "adapter"), 0.8)])
