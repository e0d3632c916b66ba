"""Methods with random or shared tensors against `peft`, beyond the table: layers of several sizes, all wavelets, and both forms of files."""

from __future__ import annotations

import copy
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import engine
from engine.numerics.wavelets import FAMILIES

CONFIGS = {
    "vera": ("VeraConfig", {"r": 5, "init_weights": False}),
    "pvera": ("PveraConfig", {"r": 5, "init_weights": False}),
    "randlora": ("RandLoraConfig", {"r": 4, "randlora_alpha": 8, "init_weights": False}),
    "randlora-sparse": ("RandLoraConfig", {"r": 4, "sparse": True, "randlora_alpha": 8, "init_weights": False}),
    "vblora": ("VBLoRAConfig", {"r": 2, "num_vectors": 9, "vector_length": 2}),
    "vblora-small": ("VBLoRAConfig", {"r": 2, "num_vectors": 9, "vector_length": 2, "save_only_topk_weights": True}),
    "unilora": ("UniLoraConfig", {"r": 3, "theta_d_length": 7}),
    "tinylora": ("TinyLoraConfig", {"r": 20, "u": 3, "weight_tying": 0.4, "init_weights": "uniform"}),
    "fourierft": ("FourierFTConfig", {"n_frequency": 11}),
    "waveft": ("WaveFTConfig", {"n_frequency": 11, "proportional_parameters": True, "wavelet_family": "db3", "init_weights": False}),
    "shira": ("ShiraConfig", {"r": 1, "init_weights": False}),
    "supertuning": ("SupertuningConfig", {"sparsity": 0.7, "r": 2, "init_weights": False}),
}
configs = pytest.mark.parametrize("name", CONFIGS)


class Several(nn.Module):
    """Layers of several sizes, one of them named by no adapter."""

    def __init__(self):
        super().__init__()
        self.a, self.skipped, self.b, self.c, self.d = nn.Linear(6, 10), nn.Linear(10, 10), nn.Linear(10, 4), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.d(torch.tanh(self.c(self.b(torch.tanh(self.skipped(self.a(x)))))))


def base() -> nn.Module:
    torch.manual_seed(3)
    return Several()


def made(package, name: str, **more) -> nn.Module:
    config, settings = CONFIGS[name]
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return package.get_peft_model(base(), getattr(package, config)(target_modules=["a", "b", "c", "d"], **settings, **more)).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


@configs
def test_layers_of_several_sizes_start_and_learn_alike(name, x):
    ours, theirs = made(engine, name), made(peft, name)
    ids = {id(p): n for n, p in sorted(theirs.named_parameters(remove_duplicate=False), key=lambda pair: -len(pair[0]))}
    b = {ids[id(p)]: p for p in theirs.parameters() if p.requires_grad}
    a = {n: p for n, p in ours.named_parameters() if p.requires_grad}
    assert a.keys() == b.keys()
    for n in a:
        torch.testing.assert_close(a[n], b[n], atol=1e-6, rtol=0)
    outputs = [model(x) for model in (ours, theirs)]
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)
    for y in outputs:
        y.square().sum().backward()
    for n in a:
        torch.testing.assert_close(a[n].grad, b[n].grad, atol=1e-4, rtol=1e-3)


@configs
def test_the_same_names_in_the_file(name, tmp_path):
    """But for what PEFT writes once a layer though all layers share it."""
    for package, folder in ((engine, "ours"), (peft, "theirs")):
        made(package, name).save_pretrained(tmp_path / folder)
    ours, theirs = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("ours", "theirs"))
    copies = {k for k in theirs if k.startswith("base_model.model.") and k.endswith((".randlora_A", ".randlora_B"))}
    assert bool(copies) == name.startswith("randlora")
    assert {k: (t.dtype, t.shape) for k, t in ours.items()} == {k: (t.dtype, t.shape) for k, t in theirs.items() if k not in copies}
    for k, t in ours.items():
        torch.testing.assert_close(t, theirs[k], atol=1e-6, rtol=0)


@configs
def test_files_go_both_ways(name, tmp_path, x):
    for package, other in ((engine, peft), (peft, engine)):
        model = made(package, name)
        folder = tmp_path / package.__name__
        model.save_pretrained(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = other.PeftModel.from_pretrained(base(), folder)
        torch.testing.assert_close(again(x), model(x), atol=1e-5, rtol=1e-4)
        if other is engine:
            assert again.load_report.complete and not again.load_report.unexpected


@pytest.mark.parametrize("name", ["vera", "pvera", "randlora", "tinylora"])
def test_files_without_projections_go_both_ways(name, tmp_path, x):
    for package, other in ((engine, peft), (peft, engine)):
        model = made(package, name, save_projection=False)
        folder = tmp_path / package.__name__
        model.save_pretrained(folder)
        left_out = ("vera_A", "vera_B", "pvera_A", "pvera_B", "randlora_A", "randlora_B", "tinylora_P")
        assert not [k for k in load_file(folder / "adapter_model.safetensors") if k.endswith(left_out)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = other.PeftModel.from_pretrained(base(), folder)
        torch.testing.assert_close(again(x), model(x), atol=1e-5, rtol=1e-4)
        if other is engine:
            assert again.load_report.complete


def test_places_that_windows_wrote_as_floats(tmp_path, x):
    model = made(peft, "shira")
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({k: t.float() for k, t in load_file(file).items()}, file)
    torch.testing.assert_close(engine.PeftModel.from_pretrained(base(), tmp_path)(x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sides", [(9, 7), (12, 5)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_wavelet(family, sides):
    layer = nn.Sequential(nn.Linear(*sides))
    x, models = torch.randn(3, sides[0]), []
    for package in (engine, peft):
        torch.manual_seed(2)
        config = package.WaveFTConfig(target_modules=["0"], n_frequency=sides[0] * sides[1] // 2, wavelet_family=family, init_weights=False)
        models.append(package.get_peft_model(copy.deepcopy(layer), config).eval())
    torch.testing.assert_close(models[0](x), models[1](x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(models[0].merge_and_unload()[0].weight, models[1].merge_and_unload()[0].weight, atol=1e-6, rtol=1e-4)
