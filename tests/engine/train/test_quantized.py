"""QLoRA through the real loop: a base packed by bitsandbytes is taught, evaluated in between, interrupted, and merged into the original."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import bitsandbytes

from safetensors.torch import load_file  # noqa: E402

from engine.bases.load import load_model  # noqa: E402
from engine.errors import BadModel  # noqa: E402
from engine.events import Evaluated, Finished, Step, Stopped  # noqa: E402
from engine.export.export import export  # noqa: E402
from engine.specs import ExportSpec  # noqa: E402
from engine.specs.jobs import StackEntry  # noqa: E402
from engine.store.record import record  # noqa: E402
from engine.store.runs import RunFolder  # noqa: E402
from engine.train import train  # noqa: E402
from engine.train.prepare import load_student, settled_precision  # noqa: E402
from tests.support.tiny import save_base  # noqa: E402


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base") / "wide", hidden=64)     # whose rows an AVX512 kernel could take together


@pytest.fixture
def repacking(monkeypatch):
    """As on a processor with AVX512-BF16: layers are made so that they repack their weights as soon as they are evaluated."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)


def run(spec, folder: Path) -> list:
    return list(record(train, spec, RunFolder.create(folder, spec)))


def test_such_a_processor_would_stop_the_learning(repacking, base):
    """What the loop is protected from, with the real package: evaluated once, a layer lets nothing through any more (or, where the processor
    lacks the kernel, the gradient of a weight in the wrong order)."""
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4").to("cpu")
    x = torch.randn(3, 64, requires_grad=True)
    layer.train()(x).sum().backward()
    right, x.grad = x.grad, None
    with torch.no_grad():
        layer.eval()(torch.randn(3, 64))
    assert layer.weight.quant_state.packing_format_for_cpu
    if (y := layer.train()(x)).requires_grad:
        y.sum().backward()
    assert x.grad is None or (x.grad - right).norm() > 0.1 * right.norm()


@pytest.mark.parametrize("bits", [4, 8])
def test_it_goes_on_learning_after_each_evaluation_and_resumes_to_the_bit(bits, repacking, monkeypatch, base, make_spec, tmp_path):
    """The run that is interrupted is one on an ordinary processor: step by step the two have the same errors."""
    spec = make_spec(out=str(tmp_path / "straight"), base_bits=bits, passes=6, rows=40)
    events = run(spec, tmp_path / "a")
    assert isinstance(events[-1], Finished)
    errors, evaluated = [e.error for e in events if isinstance(e, Step)], [e for e in events if isinstance(e, Evaluated)]
    assert len(evaluated) > 3 and evaluated[-1].error < evaluated[1].error < evaluated[0].error
    assert sum(errors[-5:]) < 0.8 * sum(errors[:5])

    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
    again = make_spec(out=str(tmp_path / "twice"), base_bits=bits, passes=6, rows=40)
    folder, steps = RunFolder.create(tmp_path / "b", again), 0
    for event in (job := record(train, again, folder)):
        steps += isinstance(event, Step)
        if steps == 20:
            folder.ask("pause")
    assert isinstance(event, Stopped)
    job.close()
    folder.clear("pause")
    assert isinstance(list(record(train, again, folder))[-1], Finished)
    assert [e.error for e in folder.events() if isinstance(e, Step)] == errors
    files = [Path(s.out) / "adapter_model.safetensors" for s in (spec, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_after_an_evaluation_are_those_before_it_and_those_of_the_dense_weights(bits, repacking, base, make_spec, tmp_path):
    spec = make_spec(base_bits=bits, method_config={"r": 4})
    model = load_student(spec, settled_precision(spec, RunFolder.create(tmp_path / "run", spec)))
    ids = torch.arange(3, 40)[None]

    def gradients(model) -> list[torch.Tensor]:
        model.train().zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    first = gradients(model)
    with torch.no_grad():
        model.eval()(input_ids=ids, use_cache=False)
    after = gradients(model)
    assert all(torch.equal(a, b) for a, b in zip(first, after, strict=True)) and any(g.any() for g in first)
    plain = make_spec(method_config={"r": 4})
    dense = load_student(plain, settled_precision(plain, RunFolder.create(tmp_path / "dense", plain)))
    with torch.no_grad():
        for path, layer in model.adapted.items():
            dense.adapted[path].base_layer.weight.copy_(layer.pristine_weight)
            for key, tensor in layer.all_tensors("default").items():
                dense.adapted[path].all_tensors("default")[key].copy_(tensor)
    for ours, exact in zip(first, gradients(dense), strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-6 * max(1.0, float(exact.abs().max())), rtol=1e-3)


def test_an_adapter_taught_on_four_bits_is_merged_into_the_original_sixteen(base, make_spec, tmp_path):
    spec = make_spec(out=str(tmp_path / "adapter"), base_bits=4, passes=2)
    assert isinstance(run(spec, tmp_path / "a")[-1], Finished)
    wanted = ExportSpec(base=spec.base, out=str(tmp_path / "whole"), stack=[StackEntry(spec.out)])
    done = list(record(export, wanted, RunFolder.create(tmp_path / "b", wanted)))[-1]
    assert isinstance(done, Finished), done
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (base, wanted.out))
    factors = load_file(Path(spec.out) / "adapter_model.safetensors")
    settings = json.loads((Path(spec.out) / "adapter_config.json").read_text())
    name = "model.layers.0.self_attn.q_proj"
    A, B = (factors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    change = B @ A * settings["lora_alpha"] / settings["r"]
    torch.testing.assert_close(after[f"{name}.weight"] - before[f"{name}.weight"], change, atol=1e-6, rtol=1e-4)


def test_the_packed_model_takes_a_part_of_the_memory(base):
    def size(model) -> int:
        linears = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
        return sum(layer.weight.numel() * layer.weight.element_size() for layer in linears)

    head = 384 * 64 * 4                    # the output layer stays as it is
    whole, eight, four = (size(load_model(base, bits=bits)) - head for bits in (16, 8, 4))
    assert eight == whole / 4 and four == whole / 8           # of float32
    assert load_model(base, bits=4).dtype == torch.float32 and load_model(base, bits=4, dtype="bfloat16").dtype == torch.bfloat16


def test_a_model_that_is_packed_already_is_not_packed_again(base, tmp_path):
    load_model(base, bits=4).save_pretrained(tmp_path / "packed")
    with pytest.raises(BadModel, match="packed already"):
        load_model(tmp_path / "packed", bits=8)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "packed")(ids).logits, load_model(base, bits=4)(ids).logits)
