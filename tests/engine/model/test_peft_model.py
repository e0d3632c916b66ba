"""Each argument with which an adapter is loaded, and those of running, merging and combining that no other file tries."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from engine.errors import BadAdapter, WrongBase
from tests.support.tiny import make_model
from tests.support.web import hub_here

IDS = torch.arange(3, 19)[None]
WEIGHTS = "adapter_model.safetensors"


def lora(**more) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM", **more})


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(IDS).logits


@pytest.fixture
def saved(tmp_path):
    """(an adapter's folder, what the model says with it)."""
    torch.manual_seed(0)
    model = get_peft_model(make_model(), lora())
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved", logits(model)


def rewrite(folder, change) -> None:
    save_file(dict(change(*pair) for pair in load_file(folder / WEIGHTS).items()), folder / WEIGHTS)


def both_ways(folder, base=make_model, **arguments):
    """(the model, the report) by `from_pretrained`, and by `load_adapter` beside another adapter."""
    model = PeftModel.from_pretrained(base(), folder, **arguments)
    yield model, model.load_report
    model = get_peft_model(base(), lora(target_modules=["v_proj"]), "first")
    report = model.load_adapter(folder, "default", **arguments)
    assert model.active_adapters == ["first"]                  # loading makes nobody active
    model.set_adapter("default")
    yield model, report


def tensors(model) -> list[torch.Tensor]:
    return [tensor for path in model.tenants("default") for tensor in model.adapted[path].all_tensors("default").values()]


def test_keys_of_other_names(saved):
    folder, expected = saved
    rewrite(folder, lambda key, tensor: (key.replace("model.layers.", "decoder.blocks."), tensor))
    for model, report in both_ways(folder, key_mapping={r"decoder\.blocks\.(\d+)": r"model.layers.\1"}):
        assert report.complete
        torch.testing.assert_close(logits(model), expected)
    with pytest.raises(WrongBase):
        PeftModel.from_pretrained(make_model(), folder)


def test_a_model_that_knows_its_keys_old_names(saved):
    folder, expected = saved
    rewrite(folder, lambda key, tensor: (key.replace("model.layers.", "decoder.blocks."), tensor))
    base = make_model()
    base._checkpoint_conversion_mapping = {"decoder.blocks": "model.layers"}
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, folder)), expected)


def test_a_device(saved):
    for model, report in both_ways(saved[0], torch_device="cpu"):
        torch.testing.assert_close(logits(model), saved[1])
    with pytest.raises(RuntimeError, match="device"):
        PeftModel.from_pretrained(make_model(), saved[0], torch_device="bakery")


@pytest.mark.parametrize("widened", [True, False])
@pytest.mark.parametrize("trains", [True, False])
def test_the_number_format(trains, widened, saved):
    rewrite(saved[0], lambda key, tensor: (key, tensor.bfloat16()))
    for model, report in both_ways(saved[0], lambda: make_model().bfloat16(), is_trainable=trains, autocast_adapter_dtype=widened):
        assert {tensor.dtype for tensor in tensors(model)} == {torch.float32 if trains and widened else torch.bfloat16}
        model.set_requires_grad("default", trains)
        assert {tensor.requires_grad for tensor in tensors(model)} == {trains}


def test_other_sizes_start_anew_and_are_told(saved):
    folder, expected = saved
    strange = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    rewrite(folder, lambda key, tensor: (key, torch.zeros(3, 2) if key == strange else tensor))
    for model, report in both_ways(folder, ignore_mismatched_sizes=True):
        assert strange.removeprefix("base_model.model.") in report.sentence()
        assert len(report.loaded) == 7 and not report.complete
        assert not torch.allclose(logits(model), expected)
    with pytest.raises(WrongBase, match="other sizes"):
        list(both_ways(folder))


@pytest.mark.parametrize("place", ["device_map", "max_memory", "offload_folder", "offload_dir", "offload_index", "use_safetensors"])
def test_where_layers_lie_is_the_model_s_own_affair(place, saved, recwarn):
    for model, report in both_ways(saved[0], **{place: {}}, low_cpu_mem_usage=True, ephemeral_gpu_offload=True):
        torch.testing.assert_close(logits(model), saved[1])
    assert not recwarn.list


def test_settings_are_not_given_by_loading(saved):
    with pytest.warns(UserWarning, match="no use for r"):
        models = list(both_ways(saved[0], r=64))
    assert all(model.peft_config["default"].r == 2 for model, report in models)


def test_a_config_instead_of_the_folder_s(saved):
    model = PeftModel.from_pretrained(make_model(), saved[0], config=lora(lora_alpha=80))
    assert model.peft_config["default"].lora_alpha == 80 and not torch.allclose(logits(model), saved[1])
    with pytest.raises(ValueError, match="must be a PeftConfig"):
        PeftModel.from_pretrained(make_model(), saved[0], config={"r": 2})


def test_from_the_hub(saved, monkeypatch, tmp_path):
    with hub_here(monkeypatch) as hub:
        from_the_hub(*saved, hub, tmp_path)


def from_the_hub(folder, expected, hub, tmp_path):
    files = {f"inside/{path.name}": path.read_bytes() for path in folder.iterdir()}
    hub.put_model("shop/bread", {**files, "inside/diary.txt": b"private"}, commit="a" * 40, revision="spring")
    asked = {"subfolder": "inside", "revision": "spring", "cache_dir": tmp_path / "cache", "token": "word"}
    for model, report in both_ways("shop/bread", **asked):
        torch.testing.assert_close(logits(model), expected)
    assert {authorization for _, _, authorization in hub.asked} == {"Bearer word"}
    assert {path.name for path in (tmp_path / "cache").rglob("*.*") if path.is_file()} >= {"adapter_config.json", WEIGHTS}
    assert not list((tmp_path / "cache").rglob("diary.txt"))  # only what an adapter consists of
    with pytest.raises(BadAdapter, match="no adapter “shop/rolls” on the Hub"):
        PeftModel.from_pretrained(make_model(), "shop/rolls", cache_dir=tmp_path / "cache")
    with pytest.raises(BadAdapter, match="“shop/bread” has no state “autumn”"):
        PeftModel.from_pretrained(make_model(), "shop/bread", **asked | {"revision": "autumn"})


@pytest.mark.parametrize("act", ["merge_adapter", "merge_and_unload"])
def test_a_safe_merge_of_what_is_no_number_changes_nothing(act):
    model = get_peft_model(make_model(), lora())
    base = {name: tensor.clone() for name, tensor in make_model().state_dict().items()}
    with torch.no_grad():
        model.adapted["model.layers.1.mlp.down_proj"].all_tensors("default")["lora_B.weight"][0, 0] = torch.nan
    model.stack.changed()
    with pytest.raises(ValueError, match="(?i)nan|not numbers"):
        getattr(model, act)(safe_merge=True)
    assert model.active_adapters == ["default"] and not model.merged_adapters
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.unload().state_dict().items())


def test_a_safe_merge_of_numbers_is_a_merge():
    model = get_peft_model(make_model(), lora())
    running = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload(safe_merge=True)), running, atol=1e-5, rtol=1e-4)


def test_what_the_base_says_of_its_number_format():
    assert get_peft_model(make_model().bfloat16(), lora()).base_model_torch_dtype == torch.bfloat16


@torch.no_grad()
def test_threads_whose_batches_hear_other_adapters_take_turns():
    torch.manual_seed(0)
    peft = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False), "a").eval()
    peft.add_adapter("b", LoraConfig(target_modules=["v_proj"], init_lora_weights=False))
    expected = {name: peft(IDS, adapter_names=[name]).logits for name in ("a", "b")}
    wrong = []

    def ask(name: str) -> None:
        with torch.no_grad():
            wrong.extend(name for _ in range(40) if not torch.equal(peft(IDS, adapter_names=[name]).logits, expected[name]))

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("a", "b", "a")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    again = copy.deepcopy(peft)            # a lock is nothing that can be copied
    assert torch.equal(again(IDS, adapter_names=["b"]).logits, expected["b"])


def test_a_prompt_says_that_a_batch_cannot_be_divided():
    peft = get_peft_model(make_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).eval()
    with pytest.raises(ValueError, match="same ones"):
        peft.generate(input_ids=IDS, adapter_names=["default"], max_new_tokens=2)
