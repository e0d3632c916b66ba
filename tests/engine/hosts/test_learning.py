"""The path of a training gives the numbers of the plain one, keeps less, and steps aside where somebody looks."""

import pytest
import torch
from torch import nn

from engine import LoraConfig, ShiraConfig, SupertuningConfig, get_peft_model
from engine.hosts import learning
from engine.hosts.recompute import Origin, recomputed


def student(dropout: float = 0.0, bias: bool = True, dtype: torch.dtype = torch.float64, **settings):
    base = nn.Sequential(nn.Linear(6, 8, bias=bias), nn.Linear(8, 4, bias=bias)).to(dtype)
    peft = get_peft_model(base, LoraConfig(r=3, target_modules=["0", "1"], lora_dropout=dropout, **{"init_lora_weights": False, **settings}),
                          autocast_adapter_dtype=dtype == torch.bfloat16)
    return peft.train()


def gradients(peft, x):
    peft.zero_grad()
    x = x.clone().requires_grad_()
    y = peft(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in peft.parameters() if p.requires_grad)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"lora_bias": True}])
def test_the_same_numbers_as_the_plain_path(monkeypatch, bias, settings):
    peft, x = student(bias=bias, **settings), torch.randn(2, 5, 6, dtype=torch.float64)
    peft.stack.set_strength("default", 0.7)
    lean = gradients(peft, x)
    monkeypatch.setattr(learning, "is_watched", lambda base: True)
    for ours, plain in zip(lean, gradients(peft, x), strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("settings", [{"init_lora_weights": "pissa"}, {"kasa_config": {"beta": 1e-4}},
                                      {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}])
def test_what_never_learns_is_in_the_weight_and_w0_is_as_it_was(monkeypatch, settings):
    peft, x = student(**{"init_lora_weights": True, **settings}), torch.randn(2, 5, 6, dtype=torch.float64)
    base = peft.adapted["0"].base_layer.weight
    before = base.detach().clone()
    for strength in (1.0, 0.7, None):
        if strength is None:               # somebody else's weights are loaded into the base
            with torch.no_grad():
                base.mul_(2)
            before = base.detach().clone()
        else:
            peft.stack.set_strength("default", strength)
        for p in peft.parameters():
            if p.requires_grad:
                p.data.add_(0.1)
        lean = gradients(peft, x)
        with monkeypatch.context() as plain_path:
            plain_path.setattr(learning, "is_watched", lambda base: True)
            for ours, plain in zip(lean, gradients(peft, x), strict=True):
                torch.testing.assert_close(ours, plain)
        assert torch.equal(base, before)


def test_dropout_falls_again_as_it_fell():
    peft, x = student(dropout=0.4), torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    learns = [p for p in peft.parameters() if p.requires_grad]

    def run(*_):
        torch.manual_seed(3)
        return peft(x)

    assert torch.autograd.gradcheck(run, (x, *learns))
    assert not torch.equal(run(), peft.eval()(x))


def test_master_weights_stay_finer_than_what_is_computed():
    peft, x = student(dtype=torch.bfloat16), torch.randn(2, 6, dtype=torch.bfloat16)
    _, _, *found = gradients(peft, x)
    assert {p.dtype for p in peft.parameters() if p.requires_grad} == {torch.float32} == {g.dtype for g in found}


def test_who_looks_at_the_base_sees_it_run():
    peft, x, seen = student(), torch.randn(2, 6, dtype=torch.float64), []
    before = peft(x)
    layer = peft.adapted["0"].base_layer
    layer.register_forward_hook(lambda module, args, out: seen.append(out))
    torch.testing.assert_close(peft(x), before)
    assert len(seen) == 1


def test_what_can_be_made_again_is_not_kept():
    kept = []

    def piece(x):
        return torch.nn.functional.silu(x)

    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        made = recomputed(piece, x)
        assert Origin.of(made) is not None
        student().base_model.model[0](made).sum().backward()
    assert made.data_ptr() not in kept and x.grad is not None
    plain = x.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: recomputed(piece, t), (plain,))


def test_a_result_that_somebody_has_changed_is_kept():
    made = recomputed(torch.tanh, torch.randn(3, requires_grad=True))
    with torch.no_grad():
        made.add_(1)
    assert Origin.of(made) is None


SPARSE = {"SHiRA": (ShiraConfig, {"r": 1}), "Super-tuning": (SupertuningConfig, {"sparsity": 0.9})}


def sparse_student(name: str, bias: bool = True):
    config, settings = SPARSE[name]
    base = nn.Sequential(nn.Linear(24, 32, bias=bias), nn.Linear(32, 20, bias=bias)).double()
    peft = get_peft_model(base, config(target_modules=["0", "1"], init_weights=False, **settings), autocast_adapter_dtype=False).train()
    indices, = (b for key, b in peft.adapted["0"].named_buffers() if "indices" in key)
    indices.copy_(indices.flip(-1))        # files may name the places in any order
    peft.stack.changed()
    return peft, torch.randn(2, 5, 24, dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", SPARSE)
def test_a_few_entries_learn_as_all_of_the_weight_would(monkeypatch, name, bias):
    peft, x = sparse_student(name, bias)
    peft.stack.set_strength("default", 0.7)
    made = []
    monkeypatch.setattr(learning._Entries, "forward", staticmethod(lambda ctx, *args, f=learning._Entries.forward: made.append(1) or f(ctx, *args)))
    lean = gradients(peft, x)
    assert len(made) == 2
    monkeypatch.setattr(learning, "is_watched", lambda base: True)
    for ours, plain in zip(lean, gradients(peft, x), strict=True):
        torch.testing.assert_close(ours, plain)
    assert len(made) == 2


@pytest.mark.parametrize("name", SPARSE)
def test_no_second_weight_is_kept_for_the_backward_pass(name):
    peft, x = sparse_student(name)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        peft(x)
    weights = {layer.base_layer.weight.data_ptr() for layer in peft.adapted.values()}
    assert weights == {t.data_ptr() for t in kept if t.shape in [(32, 24), (20, 32)]}


def test_a_place_that_a_file_names_twice_has_the_sum():
    peft, x = sparse_student("SHiRA")
    layer = peft.adapted["0"]
    indices, = (b for key, b in layer.named_buffers() if "indices" in key)
    indices[:, 1] = indices[:, 0]
    peft.stack.changed()
    peft(x).square().sum().backward()
    values, = (p for key, p in layer.named_parameters() if "shira" in key)
    torch.testing.assert_close(values.grad[0], values.grad[1])
    with torch.no_grad():
        before = layer(x)
        values[:2] = values[:2].flip(0)
        torch.testing.assert_close(layer(x), before)
