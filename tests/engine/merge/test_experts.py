"""Adapters on fused experts are baked into files, streamed where the files hold the parameter as the model does, in memory where not."""

from __future__ import annotations

import pytest
import torch

from engine import LoraConfig, get_peft_model
from engine.bases.load import load_model
from engine.errors import UnsupportedLayer
from engine.merge.plan import plan_merge
from engine.merge.stream import merge_into
from engine.model import targets
from engine.specs import StackEntry
from engine.store.library import read_model
from tests.support.tiny import make_tokenizer

IDS = torch.tensor([[5, 9, 40, 77, 120, 3]])
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 384,
         "num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8, "initializer_range": 0.2}


def save(folder, kind: str):
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = SIZES if kind != "Mamba" else {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 384, "state_size": 4}
        model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes)).eval()
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return read_model(folder)


def adapt(base, folder, config):
    """A folder with an adapter of random effect, and what the model says with it at strength 0.7."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        peft = get_peft_model(load_model(base.path), config)
        peft.save_pretrained(folder)
    peft.set_adapter({"default": 0.7})
    with torch.no_grad():
        return peft.eval()(IDS).logits


@pytest.mark.parametrize(("kind", "streamed"), [("GptOss", True), ("Mixtral", False)])
def test_experts_are_baked_into_files(kind, streamed, tmp_path):
    base = save(tmp_path / "base", kind)
    expected = adapt(base, tmp_path / "adapter", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False,
                                                            target_parameters=["experts.gate_up_proj", "experts.down_proj"]))
    plan = plan_merge(base, [StackEntry(str(tmp_path / "adapter"), 0.7)])
    assert bool(plan.missed) is not streamed
    (tmp_path / "merged").mkdir()
    list(merge_into(tmp_path / "merged", plan))
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "merged").eval()(IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_convolution_that_would_lose_its_groups_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "_MAMBA", set())             # the tiny model with such a layer, on which no adapter may sit otherwise
    base = save(tmp_path / "base", "Mamba")
    adapt(base, tmp_path / "adapter", LoraConfig(r=32, target_modules=["conv1d"], init_lora_weights=False))
    with pytest.raises(UnsupportedLayer, match="mixes the groups"):
        plan_merge(base, [StackEntry(str(tmp_path / "adapter"), 1.0)])
