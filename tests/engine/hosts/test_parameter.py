"""`target_parameters`: raw 2-D and 3-D parameters of a module against dense arithmetic, several on one module, several adapters."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import distributed, nn

from engine import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from engine.errors import UnsupportedLayer
from engine.model.targets import NoMatchingPeftModuleError
from tests.support.one import One


class Experts(nn.Module):
    """Three experts as in transformers: the two stacks and a shared matrix are parameters; the down-projection is declared last."""

    def __init__(self, is_transposed: bool = False):
        super().__init__()
        self.is_transposed = is_transposed
        self.gate_up_proj = nn.Parameter(torch.randn(*((3, 6, 10) if is_transposed else (3, 10, 6))) / 3)
        self.down_proj = nn.Parameter(torch.randn(*((3, 10, 6) if is_transposed else (3, 6, 10))) / 3)
        self.shared = nn.Parameter(torch.randn(6, 6) / 3)
        self.inner = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        up, down = (self.gate_up_proj, self.down_proj) if self.is_transposed else (self.gate_up_proj.mT, self.down_proj.mT)
        return (torch.relu(x @ up) @ down).sum(0) + x @ self.shared.T + self.inner(x) * self.scale


class Net(nn.Module):
    def __init__(self, is_transposed: bool = False):
        super().__init__()
        self.top = nn.Parameter(torch.ones(2, 2))
        self.experts = Experts(is_transposed)

    def forward(self, x):
        return self.experts(x)


def lora(*names: str, r: int = 2, **settings) -> LoraConfig:
    return LoraConfig(r=r, lora_alpha=2 * r, target_modules=settings.pop("target_modules", []), target_parameters=list(names),
                      init_lora_weights=False, **settings)


def rig(*configs, is_transposed: bool = False):
    torch.manual_seed(0)
    base = Net(is_transposed).double()
    before = copy.deepcopy(base)
    for i, config in enumerate(configs):
        if i == 0:
            peft = get_peft_model(base, config, "a0", autocast_adapter_dtype=False)
        else:
            peft.add_adapter(f"a{i}", config, autocast_adapter_dtype=False)
    peft.set_adapter(list(peft.peft_config))
    return peft.eval(), before, torch.randn(5, 6, dtype=torch.float64)


def delta(peft: PeftModel, adapter: str, name: str, is_transposed: bool) -> torch.Tensor:
    """ΔW entry by entry: expert e has A's rows e·r … and B's columns e, e + E, …"""
    p = peft.adapted[f"experts.{name}"].tensors(adapter)
    A, B = p["lora_A.weight"].detach(), p["lora_B.weight"].detach()
    if name == "shared":
        return 2 * B @ A
    r = A.shape[0] // 3
    stacked = torch.stack([2 * B[:, e::3] @ A[e * r:(e + 1) * r] for e in range(3)])
    return stacked.mT if is_transposed else stacked


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("learning", [True, False])
def test_running_is_dense_arithmetic_and_so_is_merging(is_transposed, learning):
    sets = (("gate_up_proj", "down_proj"), ("experts.shared",), ("down_proj", "shared"))
    peft, before, x = rig(*(lora(*names, r=r) for r, names in enumerate(sets, 1)), is_transposed=is_transposed)
    strengths = {"a0": 1.0, "a1": -0.5, "a2": 0.7}
    peft.set_adapter(strengths)
    model = copy.deepcopy(before)
    with torch.no_grad():
        for (adapter, strength), names in zip(strengths.items(), sets, strict=True):
            for name in names:
                name = name.rpartition(".")[2]
                getattr(model.experts, name).add_(strength * delta(peft, adapter, name, is_transposed))
    expected = model(x)
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected)
    peft.merge_adapter(["a0"])
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(peft(x), expected)
    peft.unmerge_adapter()
    with peft.disable_adapter():
        assert torch.equal(peft(x), before(x))
    merged = peft.merge_and_unload()
    assert type(merged.experts) is Experts and list(merged.state_dict()) == list(before.state_dict())
    torch.testing.assert_close(merged(x), expected)


@pytest.mark.parametrize("order", list(itertools.permutations(["gate_up_proj", "down_proj", "shared"])))
def test_wrappers_nest_as_the_parameters_are_declared_whatever_came_first(order):
    peft, before, x = rig(*(lora(name) for name in order))
    assert [n for n, p in peft.named_parameters() if "lora_A" in n] == [
        f"base_model.model.experts.{'base_layer.' * depth}lora_A.a{order.index(name)}.weight"
        for depth, name in reversed(list(enumerate(["shared", "down_proj", "gate_up_proj"])))]
    for i in range(3):                     # a file knows its own adapter's parameters only
        assert set(get_peft_model_state_dict(peft, adapter_name=f"a{i}")) == {f"base_model.model.experts.lora_{k}.weight" for k in "AB"}
    running = peft(x)
    for name in ("a1", "a0"):
        peft.delete_adapter(name)
    assert not torch.allclose(peft(x), running)
    assert torch.equal(peft.unload()(x), before(x))


def test_layers_inside_a_wrapped_module_can_be_adapted_too(tmp_path):
    peft, before, x = rig(lora("down_proj"), LoraConfig(r=2, target_modules=["inner"], init_lora_weights=False),
                          lora("gate_up_proj", target_modules=["inner"]))
    assert set(peft.adapted) == {"experts.down_proj", "experts.inner", "experts.gate_up_proj"}
    running = peft(x)
    peft.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(before), tmp_path / "a2", "a2")
    again.load_adapter(tmp_path / "a0", "a0")
    again.load_adapter(tmp_path / "a1", "a1")
    again.set_adapter(["a0", "a1", "a2"])
    torch.testing.assert_close(again(x), running)
    torch.testing.assert_close(peft.merge_and_unload()(x), running)
    assert torch.equal(again.unload()(x), before(x))


def test_experts_learn_and_the_base_does_not():
    peft, _, x = rig(lora("gate_up_proj", "down_proj"))
    peft.train()(x).pow(2).sum().backward()
    learned = {n for n, p in peft.named_parameters() if p.grad is not None}
    assert learned == {n for n, p in peft.named_parameters() if "lora_" in n}
    assert all(p.grad.abs().sum() > 0 for n, p in peft.named_parameters() if n in learned)


def test_a_fused_step_which_leaves_no_trace_is_heard():
    peft, _, x = rig(lora("gate_up_proj"))
    trained = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1, fused=True)
    for _ in range(2):
        with torch.no_grad():
            before = peft(x)
        peft(x).pow(2).sum().backward()
        optimizer.step()
        with torch.no_grad():
            heard = peft(x)
            assert not torch.allclose(heard, before)
            peft.stack.changed()
            assert torch.equal(heard, peft(x))


def test_the_adapted_parameter_is_what_code_reads_that_reads_it():
    peft, before, _ = rig(lora("gate_up_proj", "shared"))
    module = peft.base_model.model.experts
    torch.testing.assert_close(module.shared, before.experts.shared + delta(peft, "a0", "shared", False))
    torch.testing.assert_close(module.gate_up_proj, before.experts.gate_up_proj + delta(peft, "a0", "gate_up_proj", False))
    with torch.no_grad():
        assert module.shared is module.shared                  # computed once while nothing changes


def test_what_cannot_be_is_said():
    with pytest.raises(TypeError, match="must be a list of strings or None"):
        LoraConfig(target_parameters="down_proj")
    for settings, phrase in (({"lora_dropout": 0.1}, "lora_dropout != 0"), ({"use_dora": True}, "use_dora=True"), ({"lora_bias": True}, "lora_bias")):
        with pytest.raises(UnsupportedLayer, match=phrase):
            rig(lora("down_proj", **settings))
    with pytest.raises(UnsupportedLayer, match="init_lora_weights='pissa'"):
        rig(LoraConfig(init_lora_weights="pissa", target_modules=[], target_parameters=["down_proj"]))
    with pytest.raises(ValueError, match="only 2d and 3d"):
        rig(lora("experts.scale"))
    with pytest.raises(ValueError, match="top-level module"):
        rig(lora("top"))
    with pytest.raises(ValueError, match="not also targeted with `target_modules`"):
        rig(lora("inner.weight", target_modules=["inner"]))
    with pytest.raises(NoMatchingPeftModuleError, match="no `target_parameters` found"):
        rig(lora("nothing"))
    with pytest.warns(RuntimeWarning, match="no parameter was matched"):
        rig(lora("nothing", target_modules=["inner"]))
    peft, _, x = rig(lora("down_proj"))
    with pytest.raises(ValueError, match="mixed adapter batches"):
        peft(x, adapter_names=["a0"] * 5)
    with pytest.raises(ValueError, match="does not support targeting nn.Parameter"):
        peft.add_weighted_adapter(["a0"], [1.0], "mixed")


@pytest.fixture
def one_process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("make, config", [
    (Net, {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    (lambda: One(nn.MultiheadAttention(6, 2)), {"target_modules": ["layer"]}),
], ids=["experts", "attention"])
def test_sharded_training_hears_what_sits_on_parameters(make, config, one_process):
    from torch.distributed.fsdp import FullyShardedDataParallel

    torch.manual_seed(0)
    peft, x = get_peft_model(make(), LoraConfig(r=2, init_lora_weights=False, **{"target_modules": [], **config})), torch.randn(4, 3, 6)
    inputs = [x.flatten(0, 1)] if isinstance(peft.get_base_model(), Net) else [x] * 3
    said = lambda model: (model(*inputs)[0] if len(inputs) == 3 else model(*inputs))  # noqa: E731
    whole = copy.deepcopy(peft)
    sharded = FullyShardedDataParallel(peft, use_orig_params=True, device_id=torch.device("cpu"))
    said(whole).square().sum().backward()
    said(sharded).square().sum().backward()
    torch.testing.assert_close(said(sharded), said(whole))
    gradients = [{name.replace("_fsdp_wrapped_module.", ""): p.grad for name, p in m.named_parameters() if p.requires_grad} for m in (whole, sharded)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad(), whole.disable_adapter():
        plain = said(whole)
    with torch.no_grad():
        assert not torch.allclose(said(sharded), plain)
