"""X-LoRA by dense arithmetic, and PEFT's methods for its scalings."""

from __future__ import annotations

import pytest
import torch

from engine import LoraConfig, PeftModel, XLoraConfig, get_peft_model
from engine.errors import BadAdapter
from tests.support.families import family, ids


def base():
    model = family("Llama", "ForCausalLM")
    model.config.use_cache = False
    return model


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    for i, targets in enumerate((["q_proj"], ["q_proj", "embed_tokens"])):
        torch.manual_seed(i)
        get_peft_model(family("Llama", "ForCausalLM"), LoraConfig(target_modules=targets, r=2 + i, init_lora_weights=False)
                       ).save_pretrained(folder / str(i))
    return {"law": str(folder / "0"), "art": str(folder / "1")}


def mixed(adapters, **settings):
    torch.manual_seed(4)
    return get_peft_model(base(), XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters=adapters, **settings)).eval()


def test_every_layer_hears_its_experts_as_the_network_says(adapters):
    model = mixed(adapters, layerwise_scalings=True, global_scaling_weight=1.5)
    paths = [path for path, _ in sorted(model.tenants("default").items(), key=lambda item: item[1].site.index)]
    assert paths[0] == "model.embed_tokens" and len(paths) == 3
    seen = {}
    for path in paths:
        model.adapted[path].register_forward_hook(lambda m, args, out, path=path: seen.setdefault(path, []).append((args[0], out)))
    model(input_ids=ids())
    scalings = model.get_latest_scalings()
    assert scalings.shape == (2, 10, 3, 2)
    torch.testing.assert_close(scalings.sum(-1), torch.ones(2, 10, 3))
    for number, path in enumerate(paths):
        layer, (x, y) = model.adapted[path], seen[path][-1]   # the second pass
        expected = layer.base_layer(x)
        for name in set(layer.tenants) - {"default"}:
            t = layer.tenants[name]
            f = t.method.factors(layer.all_tensors(name), t.config, t.site)
            seen_by = f.A.T[x] if path.endswith("tokens") else x @ f.A.T
            expected = expected + 1.5 * scalings[:, :, number, int(name), None] * f.scale * (seen_by @ f.B.T)
        torch.testing.assert_close(y, expected)


def test_scalings_can_be_looked_at_and_changed(adapters):
    model = mixed(adapters)
    assert model.get_latest_scalings() is None
    model.enable_scalings_logging()
    for length in (4, 6, 4):
        model(input_ids=ids(1, length))
    model.disable_scalings_logging()
    model(input_ids=ids(1, 5))
    assert [s.shape[1] for s in model.get_scalings_log()] == [4, 6, 4]
    assert {length: numbers for length, (numbers, _) in model.get_bucketed_scalings_log().items()} == {4: [0, 2], 6: [1]}
    model.clear_scalings_log()
    assert model.get_scalings_log() == []
    before = model(input_ids=ids()).logits
    model.set_topk_lora(1)
    assert not torch.equal(model(input_ids=ids()).logits, before)
    model.set_topk_lora(None)
    model.set_global_scaling_weight(0.0)
    with torch.no_grad():
        silent = model(input_ids=ids()).logits
        with model.disable_adapter():
            torch.testing.assert_close(model(input_ids=ids()).logits, silent)
    assert model.get_global_scaling_weight() == 0.0
    model.set_scaling_pass_value(None)
    assert model.peft_config["default"].scaling_pass_value == 0.5


def test_only_the_network_learns_unless_the_experts_shall_too(adapters):
    for both in (False, True):
        model = mixed(adapters, use_trainable_adapters=both).train()
        model(input_ids=ids(), labels=ids()).loss.backward()
        learning = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert any("xlora_classifier" in name for name in learning)
        assert any("lora_A" in name for name in learning) == both


def test_files_find_their_experts_and_failures_leave_the_base(adapters, tmp_path):
    model = mixed(adapters)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base(), tmp_path, adapters=dict(reversed(adapters.items())))
    assert again.peft_config["default"].adapters == dict(reversed(adapters.items()))
    again = PeftModel.from_pretrained(base(), tmp_path)
    torch.testing.assert_close(again(input_ids=ids()).logits, model(input_ids=ids()).logits)
    plain = base()
    modules = dict(plain.named_modules())
    with pytest.raises(BadAdapter):
        get_peft_model(plain, XLoraConfig(hidden_size=32, adapters={**adapters, "gone": str(tmp_path / "none")}))
    assert dict(plain.named_modules()) == modules and all(p.requires_grad for p in plain.parameters())
    plain.config.use_cache = True
    with pytest.raises(ValueError, match="use_cache"):
        get_peft_model(plain, XLoraConfig(hidden_size=32, adapters=adapters))
    with pytest.raises(ValueError, match="of their own"):
        model.add_adapter("more", LoraConfig(target_modules=["q_proj"]))
    assert model.unload() is model.base_model.model
