"""Layers of a program's own making, registered as PEFT's guide to custom models describes it."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from engine.compat import install_as_peft

peft = install_as_peft()
lora = peft.tuners.lora


class Halved(nn.Module):
    """A linear layer that is none of torch's."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 6, 8
        self.weight = nn.Parameter(torch.randn(8, 6))

    def forward(self, x):
        return nn.functional.linear(x, self.weight) / 2


class Same(lora.Linear):
    """PEFT's own layer."""


class Gated(lora.Linear):
    """With a learned gate for each adapter, and a forward that is written out."""

    def __init__(self, *args, start: float = 0.5, **kwargs):
        self.start = start
        super().__init__(*args, **kwargs)

    def update_layer(self, adapter_name, *args, **kwargs):
        super().update_layer(adapter_name, *args, **kwargs)
        if "lora_gate" not in self._modules:
            self.lora_gate = nn.ParameterDict({})
        self.lora_gate[adapter_name] = nn.Parameter(torch.full((1,), self.start))

    def forward(self, x, *args, **kwargs):
        self._check_forward_args(x, *args, **kwargs)
        y = self.base_layer(x, *args, **kwargs)
        for name in [] if self.disable_adapters else self.active_adapters:
            if name in self.lora_A.keys():
                y = y + self.lora_gate[name] * self.lora_B[name](self.lora_A[name](self.lora_dropout[name](x))) * self.scaling[name]
        return y


class Recurrent(nn.Module, lora.LoraLayer):
    """For a layer of which nobody knows what its sizes are: a low-rank path from its inputs to its outputs."""

    def __init__(self, base_layer, adapter_name, r=0, lora_alpha=1, **kwargs):
        super().__init__()
        lora.LoraLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha=lora_alpha)

    def update_layer(self, adapter_name, r, lora_alpha, **kwargs):
        self.r[adapter_name] = r
        self.scaling[adapter_name] = lora_alpha / r
        self.lora_A[adapter_name] = nn.Linear(self.base_layer.input_size, r, bias=False)
        self.lora_B[adapter_name] = nn.Linear(r, self.base_layer.hidden_size, bias=False)

    def forward(self, x):
        y, state = self.base_layer(x)
        for name in self.active_adapters:
            y = y + self.lora_B[name](self.lora_A[name](x)) * self.scaling[name]
        return y, state


class Model(nn.Module):
    def __init__(self, first: nn.Module):
        super().__init__()
        self.first, self.last = first, nn.Linear(8, 4)

    def forward(self, x):
        y = self.first(x)
        return self.last(torch.relu(y[0] if isinstance(y, tuple) else y))


def adapted(made, first=Halved, **more):
    torch.manual_seed(0)
    model = Model(first())
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["first", "last"], init_lora_weights=False, **more)
    config._register_custom_module({first().__class__: made})
    return peft.get_peft_model(model, config)


RECURRENT = partial(nn.GRU, 6, 8)
CASES = [(Same, Halved), (Gated, Halved), (partial(Gated, start=0.25), Halved), (Recurrent, RECURRENT)]


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
@pytest.mark.parametrize("made,first", CASES, ids=["same", "gated", "partial", "recurrent"])
def test_a_layer_of_ones_own_learns_is_saved_and_comes_back(made, first, tmp_path):
    model, x = adapted(made, first), torch.randn(5, 6)
    own = model.base_model.model.first
    assert isinstance(own, getattr(made, "func", made)) and isinstance(own, lora.LoraLayer) and type(own.base_layer) is type(first())
    assert own.r["default"] == 2 and own.scaling["default"] == 3 and not any(p.requires_grad for p in own.base_layer.parameters())
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in own.named_parameters() if "default" in n} == {n.partition("first.")[2] for n in learning if ".first." in n}
    assert len(learning) == 4 + isinstance(own, Gated)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(x).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == learning

    expected = model(x)
    model.save_pretrained(tmp_path)
    config = peft.LoraConfig.from_pretrained(tmp_path)
    config._register_custom_module({type(first()): made})
    torch.manual_seed(0)
    again = peft.PeftModel.from_pretrained(Model(first()), tmp_path, config=config)
    assert again.state_dict().keys() == model.state_dict().keys() and not again.load_report.missing
    torch.testing.assert_close(again(x), expected)
    again.load_adapter(tmp_path, "twin")                       # without saying it again: the layer is there
    again.set_adapter("twin")
    torch.testing.assert_close(copy.deepcopy(again)(x), expected)
    again.delete_adapter("default")
    torch.testing.assert_close(again(x), expected)
    torch.testing.assert_close(again.unload()(x), Model.forward(adapted(made, first).unload(), x))


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_the_law_is_loras_and_the_forward_that_of_the_class():
    x = torch.randn(5, 6)
    for made in (Same, Gated):
        model = adapted(made)
        own = model.base_model.model.first
        low = x @ own.lora_A["default"].weight.T @ own.lora_B["default"].weight.T * 3
        torch.testing.assert_close(own(x), own.base_layer(x) + (low if made is Same else low * 0.5))


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_only_what_the_engine_runs_itself_is_merged():
    torch.manual_seed(0)
    model = Model(nn.Linear(6, 8))
    x, config = torch.randn(5, 6), peft.LoraConfig(r=2, target_modules=["first"], init_lora_weights=False)
    config._register_custom_module({nn.Linear: Same})
    model = peft.get_peft_model(model, config)
    assert isinstance(model.base_model.model.first, Same)
    expected = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), expected)
    model = adapted(Gated)
    weight = model.base_model.model.first.base_layer.weight.clone()
    with pytest.raises(ValueError, match="ways of its own"):
        model.merge_and_unload()
    assert torch.equal(model.base_model.model.first.base_layer.weight, weight)


def test_what_cannot_be_is_said():
    class Sizeless(lora.Linear):
        pass

    with pytest.warns(UserWarning, match="Unsupported layer type .*GRU"), pytest.raises(ValueError, match="not known: Sizeless"):
        adapted(Sizeless, RECURRENT)
    with pytest.raises(ValueError, match="biases of first"):
        adapted(Same, bias="lora_only")
