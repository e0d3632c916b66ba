"""What PEFT's table of errors asks for: one clear sentence, and a model that is as it was before."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engine import (AdaLoraConfig, BOFTConfig, LilyConfig, LoraConfig, OSFConfig, PeanutConfig, PeftModel, PromptTuningConfig, TinyLoraConfig,
                    TrainableTokensConfig, get_peft_model)
from engine.errors import BadAdapter, UnsupportedLayer, WrongBase
from tests.support.families import family, ids
from tests.support.tiny import make_model

IDS = torch.arange(3, 19)[None]


class Pooled(nn.Module):
    """A layer that carries no adapter of any kind beside one that does."""

    def __init__(self):
        super().__init__()
        self.layer, self.pool = nn.Linear(4, 4), nn.MaxPool1d(2)

    def forward(self, x):
        return self.pool(self.layer(x))


@pytest.mark.parametrize("cls", [LoraConfig, BOFTConfig, LilyConfig, PeanutConfig, TinyLoraConfig, TrainableTokensConfig, OSFConfig])
def test_a_layer_that_carries_no_adapter(cls):
    model = Pooled()
    more = {"token_indices": [1]} if cls is TrainableTokensConfig else {}
    with pytest.raises(ValueError, match="pool"):
        get_peft_model(model, cls(target_modules=["pool"], **more))
    assert type(model.pool) is nn.MaxPool1d and type(model.layer) is nn.Linear and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("settings", [{"target_modules": ["nothing"]}, {"r": 0}, {"init_lora_weights": "foo"}, {"task_type": "SHOPPING"},
                                      {"target_modules": ".*q_proj", "layers_to_transform": [0]},
                                      {"target_modules": ".*q_proj", "layers_pattern": "layers"}], ids=str)
def test_settings_that_make_no_sense(settings):
    model = make_model()
    with pytest.raises(ValueError):
        get_peft_model(model, LoraConfig(**{"target_modules": ["q_proj"], **settings}))
    assert model.state_dict().keys() == make_model().state_dict().keys() and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("names", [["default"], ["nobody", "default"], ["default", "default", "default"]], ids=["too few", "unknown", "too many"])
def test_adapters_of_samples(names):
    model = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    before = model(IDS.repeat(2, 1)).logits
    with pytest.raises(ValueError):
        model(IDS.repeat(2, 1), adapter_names=names)
    with pytest.raises(ValueError, match="train"):
        model.train()(IDS.repeat(2, 1), adapter_names=["default", "default"])
    assert torch.equal(model.eval()(IDS.repeat(2, 1)).logits, before)


def test_files_that_are_not_there(tmp_path):
    model = make_model()
    with pytest.raises(BadAdapter, match="Can't find 'adapter_config.json'"):
        PeftModel.from_pretrained(model, tmp_path)
    get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(BadAdapter, match="Can't find weights"):
        PeftModel.from_pretrained(model, tmp_path)
    assert model.state_dict().keys() == make_model().state_dict().keys() and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("more", [False, True], ids=["a first adapter", "a second one"])
def test_sizes_of_another_model(more, tmp_path):
    get_peft_model(make_model(hidden=32), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    model = make_model()
    before = {name: type(module) for name, module in model.named_modules()}
    if more:
        peft = get_peft_model(model, LoraConfig(target_modules=["v_proj"], init_lora_weights=False)).eval()
        heard = peft(IDS).logits
    with pytest.raises(WrongBase, match="other sizes"):
        peft.load_adapter(tmp_path, "other") if more else PeftModel.from_pretrained(model, tmp_path)
    if more:
        assert list(peft.peft_config) == ["default"] and torch.equal(peft(IDS).logits, heard)
        model = peft.unload()
    assert {name: type(module) for name, module in model.named_modules()} == before and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("target", ["out_proj", "conv1d", "dt_proj"])
def test_layers_that_a_mamba_never_runs(target):
    model = family("Mamba", "ForCausalLM")
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(UnsupportedLayer, match="incompatible with Mamba-based models"):
        get_peft_model(model, LoraConfig(target_modules=["in_proj", target]))
    assert {name: type(module) for name, module in model.named_modules()} == before and all(p.requires_grad for p in model.parameters())
    peft = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    assert {path.rpartition(".")[2] for path in peft.adapted} == {"in_proj", "x_proj"}
    running = peft(ids()).logits
    peft.merge_adapter()
    torch.testing.assert_close(peft(ids()).logits, running, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [lambda: LoraConfig(target_modules=["q_proj", "fc1"], bias="all", init_lora_weights=False),
                                    lambda: AdaLoraConfig(target_modules=["q_proj"], init_lora_weights=False, total_step=10)],
                         ids=["bias", "AdaLoRA"])
def test_what_peft_can_hold_only_once_is_held_twice(config):
    """Biases are the adapter's own here, and one AdaLoRA's ranks are nothing to another."""
    peft = get_peft_model(family("OPT", "ForCausalLM"), config(), "one").eval()
    base = family("OPT", "ForCausalLM")(ids()).logits
    peft.add_adapter("two", config())
    with torch.no_grad():
        for name in ("one", "two"):
            for path in peft.tenants(name):
                for key, tensor in peft.adapted[path].tensors(name).items():
                    tensor.add_(0.05 * torch.randn_like(tensor)) if "lora" in key or "bias" in key else None
    peft.stack.changed()
    peft.set_adapter(["one", "two"])
    both = peft(ids()).logits
    peft.merge_adapter()
    torch.testing.assert_close(peft(ids()).logits, both, atol=1e-4, rtol=1e-4)
    peft.set_adapter("one")
    assert not torch.allclose(peft(ids()).logits, both)
    assert torch.equal(peft.unload()(ids()).logits, base)


def test_a_name_that_is_taken():
    peft = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"]))
    layers = set(peft.adapted)
    with pytest.raises(ValueError, match="already exists"):
        peft.add_adapter("default", LoraConfig(target_modules=["v_proj"]))
    for act in (peft.set_adapter, peft.delete_adapter):
        with pytest.raises(ValueError):
            act("nobody")
    assert set(peft.adapted) == layers and peft.active_adapters == ["default"]


# --- every row of the table, with one look at all that could have changed ---

def folders(root):
    """Adapters' folders, whole and broken in every way of the table."""
    for name, hidden in (("whole", 48), ("other sizes", 32)):
        torch.manual_seed(0)
        get_peft_model(make_model(hidden=hidden), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(root / name)
    for name in ("empty", "no weights", "nothing fits", "no numbers", "no kind", "unknown kind", "no json", "cut short"):
        shutil.copytree(root / "whole", root / name)
    (root / "empty" / "adapter_config.json").unlink()
    (root / "no weights" / "adapter_model.safetensors").unlink()
    tensors = load_file(root / "whole" / "adapter_model.safetensors")
    save_file({f"elsewhere.{key}": tensor for key, tensor in tensors.items()}, root / "nothing fits" / "adapter_model.safetensors")
    save_file({key: tensor * float("nan") for key, tensor in tensors.items()}, root / "no numbers" / "adapter_model.safetensors")
    said = json.loads((root / "whole" / "adapter_config.json").read_text())
    (root / "no kind" / "adapter_config.json").write_text(json.dumps({key: value for key, value in said.items() if key != "peft_type"}))
    (root / "unknown kind" / "adapter_config.json").write_text(json.dumps(said | {"peft_type": "MAGIC"}))
    (root / "no json" / "adapter_config.json").write_text("{")
    whole = (root / "whole" / "adapter_model.safetensors").read_bytes()
    (root / "cut short" / "adapter_model.safetensors").write_bytes(whole[:len(whole) // 2])
    return root


def on_layers(cls=LoraConfig, **settings):
    return lambda model, root: get_peft_model(model, cls(**{"target_modules": ["q_proj"], **settings}))


def from_folder(name):
    return lambda model, root: PeftModel.from_pretrained(model, root / name)


def adapted(act):
    """A deed on a model that has an adapter, which it also has afterwards."""
    def done(model, root):
        peft = PeftModel.from_pretrained(model, root / "whole")
        heard = peft(IDS).logits
        try:
            act(peft, root)
        finally:
            assert list(peft.peft_config) == ["default"] == peft.active_adapters and torch.equal(peft.eval()(IDS).logits, heard)
            peft.unload()
    return done


TWO = IDS.repeat(2, 1)
ROWS = {
    "no such folder": from_folder("nowhere"), **{name: from_folder(name) for name in (
        "empty", "no weights", "other sizes", "nothing fits", "no numbers", "no kind", "unknown kind", "no json", "cut short")},
    **{f"{name}, beside another": adapted(lambda peft, root, name=name: peft.load_adapter(root / name, "other")) for name in (
        "empty", "no weights", "other sizes", "nothing fits", "no numbers", "no kind", "unknown kind", "no json", "cut short")},
    "no such layers": on_layers(target_modules=["nothing"]), "a list of layers": on_layers(target_modules=["layers"]),
    "a function": on_layers(target_modules=["act_fn"]), "a norm": on_layers(target_modules=["input_layernorm"]),
    "no rank": on_layers(r=0), "no such start": on_layers(init_lora_weights="foo"), "no such task": on_layers(task_type="SHOPPING"),
    "a pattern and layers": on_layers(target_modules=".*q_proj", layers_to_transform=[0]),
    "a pattern and a pattern": on_layers(target_modules=".*q_proj", layers_pattern="layers"),
    "no such bias": on_layers(bias="some"), "no such words": on_layers(
        trainable_token_indices=[10 ** 6]),
    "a prompt without a task": lambda model, root: get_peft_model(model, PromptTuningConfig(num_virtual_tokens=3)),
    "a prompt without a length": lambda model, root: get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM")),
    "too few names": adapted(lambda peft, root: peft(TWO, adapter_names=["default"])),
    "too many names": adapted(lambda peft, root: peft(TWO, adapter_names=["default"] * 3)),
    "unknown names": adapted(lambda peft, root: peft(TWO, adapter_names=["nobody", "default"])),
    "names while it learns": adapted(lambda peft, root: peft.train()(TWO, adapter_names=["default", "default"])),
    "a name that is taken": adapted(lambda peft, root: peft.add_adapter("default", LoraConfig(target_modules=["v_proj"]))),
    "a name with a dot": adapted(lambda peft, root: peft.add_adapter("a.b", LoraConfig(target_modules=["v_proj"]))),
    "no name": adapted(lambda peft, root: peft.add_adapter("", LoraConfig(target_modules=["v_proj"]))),
    "choosing nobody": adapted(lambda peft, root: peft.set_adapter("nobody")),
    "deleting nobody": adapted(lambda peft, root: peft.delete_adapter("nobody")),
    "merging nobody": adapted(lambda peft, root: peft.merge_adapter(["nobody"])),
    "saving nobody": adapted(lambda peft, root: peft.save_pretrained(root / "new", selected_adapters=["nobody"])),
    "weights for others": adapted(lambda peft, root: peft.add_weighted_adapter(["default"], [1.0, 2.0], "new")),
    "no density": adapted(lambda peft, root: peft.add_weighted_adapter(["default"], [1.0], "new", combination_type="ties")),
    "no such combination": adapted(lambda peft, root: peft.add_weighted_adapter(["default"], [1.0], "new", combination_type="magic")),
}


def seen(model, root):
    """All that could have changed: modules, tensors, what trains; files and what is in them."""
    return ({name: type(module) for name, module in model.named_modules()}, {name: p.requires_grad for name, p in model.named_parameters()},
            {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()},
            {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()})


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return folders(tmp_path_factory.mktemp("adapters"))


@pytest.mark.parametrize("row", ROWS)
def test_an_error_is_a_sentence_and_leaves_model_and_disk_as_they_were(row, broken):
    model = make_model()
    before = seen(model, broken)
    with pytest.raises((ValueError, RuntimeError)) as caught:
        ROWS[row](model, broken)
    assert seen(model, broken) == before
    said = str(caught.value)
    assert said[0].isupper() or said[0] in "`'", said
    assert said.count(" ") >= 3 and "\n" not in said and said[-1] in ".)", said
    torch.testing.assert_close(PeftModel.from_pretrained(model, broken / "whole")(IDS).logits,
                               PeftModel.from_pretrained(make_model(), broken / "whole")(IDS).logits)
