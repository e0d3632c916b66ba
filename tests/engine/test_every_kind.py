"""The laws of `test_laws.py` on a whole model, for every kind of adapter that is registered: in layers, routed, prompts, outside of the layers.

A law that cannot hold for a kind is one that the kind refuses by its own word: what never merges says so, and nothing has changed.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import engine
from engine import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from engine.errors import BadAdapter, CannotMerge, WrongBase
from engine.law import MapMethod, Routed
from engine.methods.registry import _BUILT_IN, law
from tests.support.families import family, ids
from tests.support.methods import METHODS

LAYERS = {"target_modules": ["q_proj", "v_proj"]}
EXPERTS: dict[str, str] = {}
PROMPT = {"num_virtual_tokens": 3}
OTHERS: dict[str, Callable[[], PeftConfig]] = {              # those that are no rows of `METHODS`
    "adamss": lambda: engine.AdamssConfig(**LAYERS, r=8, num_subspaces=2),
    "poly": lambda: engine.PolyConfig(**LAYERS, r=2, n_tasks=2, init_weights=False),
    "lily": lambda: engine.LilyConfig(**LAYERS, r=2, init_weights=False),
    "alora": lambda: LoraConfig(**LAYERS, r=2, alora_invocation_tokens=[int(ids()[0, 4])], init_lora_weights=False),
    "arrow": lambda: LoraConfig(**LAYERS, r=2, arrow_config=engine.ArrowConfig(top_k=1)),
    "xlora": lambda: engine.XLoraConfig(hidden_size=32, xlora_depth=1, adapters=EXPERTS),
    "shadow": lambda: engine.ShadowConfig(r=2, shadow_dropout=0.0, init_weights=False),
    "ln tuning": lambda: engine.LNTuningConfig(),
    "words": lambda: engine.TrainableTokensConfig(token_indices=[int(ids()[0, 2]), 9]),
    "prompt": lambda: engine.PromptTuningConfig(**PROMPT),
    "p-tuning": lambda: engine.PromptEncoderConfig(**PROMPT, encoder_hidden_size=8),
    "prefix": lambda: engine.PrefixTuningConfig(**PROMPT),
    "cartridge": lambda: engine.CartridgeConfig(**PROMPT),
    "multitask": lambda: engine.MultitaskPromptTuningConfig(**PROMPT, num_tasks=2),
    "cpt": lambda: engine.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[5, 9, 7], cpt_tokens_type_mask=[1, 2, 3]),
    "adaption prompt": lambda: engine.AdaptionPromptConfig(adapter_len=3, adapter_layers=2),
}


def of_row(row: Any) -> Callable[[], PeftConfig]:
    return lambda: getattr(engine, row.config)(**LAYERS, **{**row.settings, **row.heard})


KINDS = {kind: of_row(row) for kind, row in METHODS.items() if row.layers and "-" not in kind} | OTHERS
DTYPES = (torch.float32, torch.bfloat16)
kinds = pytest.mark.parametrize("kind", KINDS)
unlike = pytest.mark.parametrize(("kind", "dtype"), [(kind, dtype) for dtype in DTYPES for kind in (KINDS if dtype is DTYPES[0] else OTHERS)],
                                 ids=lambda part: str(part).removeprefix("torch."))        # those in 16 bits that `test_laws.py` does not have
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@cache
def plain(dtype: torch.dtype = torch.float32) -> nn.Module:
    model = family("Llama", "ForCausalLM", initializer_range=0.15).to(dtype)
    model.config.use_cache = False
    return model


@pytest.fixture(autouse=True, scope="module")
def experts_on_the_disk(tmp_path_factory):
    """Two LoRAs for X-LoRA to choose from."""
    for name in ("one", "two"):
        EXPERTS[name] = str(tmp_path_factory.mktemp(name))
        get_peft_model(base(), LoraConfig(**LAYERS, r=2, init_lora_weights=False)).save_pretrained(EXPERTS[name])


def base(dtype: torch.dtype = torch.float32) -> nn.Module:
    return copy.deepcopy(plain(dtype))


def rig(kind: str, dtype: torch.dtype = torch.float32) -> PeftModel:
    """A model whose adapter "a" is of this kind and does something; beside it, where it needs some to choose from, two others."""
    torch.manual_seed(3)
    config = KINDS[kind]()
    config.task_type = "CAUSAL_LM"
    peft = get_peft_model(base(dtype), config, "a")
    for name in ("b", "c") if kind == "arrow" else ():
        peft.add_adapter(name, LoraConfig(**LAYERS, r=2, init_lora_weights=False))
    with torch.no_grad():
        for parameter in learning(peft):
            parameter.add_(0.1 * torch.randn_like(parameter))
    peft.stack.changed()
    peft.eval()
    if kind == "cpt":                      # a pass brings its words back within their bounds
        logits(peft)
    return peft


def learning(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def logits(model: nn.Module, kind: str = "", grad: bool = False) -> torch.Tensor:
    tasks = {"task_ids": torch.tensor([1, 0])} if kind in ("poly", "multitask") else {}
    with torch.set_grad_enabled(grad):
        return model(input_ids=ids(), **tasks).logits


def close(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=(1e-4 if dtype is torch.float32 else 8e-2) * max(1.0, b.abs().max().item()))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_no_kind_is_left_out():
    assert {KINDS[kind]().peft_type for kind in KINDS} == set(_BUILT_IN)


@kinds
@dtypes
def test_running_equals_merging_or_merging_is_refused(kind, dtype):
    peft = rig(kind, dtype)
    running, before = logits(peft, kind), state(peft)
    assert (running[:, -10:] - logits(plain(dtype))).abs().max() > 1e-3
    try:
        peft.merge_adapter()
    except CannotMerge:
        assert peft.lone or isinstance(law(peft.peft_config["a"]), Routed)
        with pytest.raises(CannotMerge):
            peft.merge_and_unload()
        assert same(state(peft), before) and torch.equal(logits(peft, kind), running) and peft.merged_adapters == []
        return
    close(logits(peft, kind), running, dtype)
    peft.unmerge_adapter()
    assert torch.equal(logits(peft, kind), running)
    close(logits(peft.merge_and_unload()), running, dtype)


@kinds
@dtypes
def test_strength_zero_is_the_base_and_one_the_adapter(kind, dtype, monkeypatch):
    peft = rig(kind, dtype)
    one = logits(peft, kind)
    with monkeypatch.context() as still:   # law 6: a slider walks no module
        for walk in ("named_modules", "modules", "named_parameters"):
            still.setattr(nn.Module, walk, lambda *a, **k: pytest.fail("walked the modules"))
        peft.stack.set_strength("a", 0.0)
    assert torch.equal(logits(peft, kind), logits(plain(dtype)))
    peft.stack.set_strength("a", 1.0)
    assert torch.equal(logits(peft, kind), one)


@unlike
def test_learning_leaves_the_base_and_the_four_sets_apart(kind, dtype):
    peft, expected = rig(kind, dtype), logits(plain(dtype))
    trained = learning(peft)
    if kind != "arrow":                    # which reads its directions off the others
        optimizer = torch.optim.SGD(trained, lr=0.05)
        logits(peft.train(), kind, grad=True).float().pow(2).mean().backward()
        optimizer.step()
        assert all(p.grad is None for p in peft.parameters() if not p.requires_grad)
        assert any(p.grad is not None and p.grad.any() for p in trained)
    heard = logits(peft.eval(), kind)
    with peft.disable_adapter():           # enabled …
        assert torch.equal(logits(peft, kind), expected) and learning(peft) == trained
    peft.set_requires_grad("a", False)     # … and learning …
    assert not learning(peft)
    close(logits(peft, kind), heard, dtype)
    peft.set_adapter("a", inference_mode=True)                # … and active are three things
    assert not learning(peft)
    close(logits(peft, kind), heard, dtype)
    peft.set_adapter("a")
    assert {id(p) for p in learning(peft)} == {id(p) for p in trained}
    back = peft.unload()
    assert same(state(back), state(plain(dtype))) and torch.equal(logits(back), expected) and all(p.requires_grad for p in back.parameters())


@unlike
def test_a_file_brings_it_back_and_tells_what_it_did(kind, dtype, tmp_path):
    peft = rig(kind, dtype)
    expected = logits(peft, kind)
    peft.save_pretrained(tmp_path, selected_adapters=["a"])
    again = PeftModel.from_pretrained(base(dtype), tmp_path / "a", "a", **({"adapters": EXPERTS} if kind == "xlora" else {}))
    for name in ("b", "c") if kind == "arrow" else ():
        again.load_adapter(saved_alone(peft, name, tmp_path), name)
    assert again.load_report.complete, again.load_report.sentence()
    assert not learning(again)
    close(logits(again, kind), expected, dtype)
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file({f"elsewhere.{key}": tensor for key, tensor in load_file(path).items()}, path)
    model = base(dtype)
    with pytest.raises((WrongBase, BadAdapter)):              # a file of which nothing fits is an error, and nothing has changed
        PeftModel.from_pretrained(model, tmp_path / "a", **({"adapters": EXPERTS} if kind == "xlora" else {}))
    assert same(state(model), state(plain(dtype))) and all(p.requires_grad for p in model.parameters())


@kinds
def test_without_values_it_waits_for_its_file(kind):
    peft = rig(kind)
    config = KINDS[kind]()
    config.task_type = "CAUSAL_LM"
    empty = get_peft_model(base(), config, "a", low_cpu_mem_usage=True).eval()
    for name in ("b", "c") if kind == "arrow" else ():
        empty.add_adapter(name, LoraConfig(**LAYERS, r=2), low_cpu_mem_usage=True)
    for name in peft.peft_config:
        assert set_peft_model_state_dict(empty, get_peft_model_state_dict(peft, adapter_name=name), name).complete
    assert not any(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    close(logits(empty, kind), logits(peft, kind), torch.float32)
    assert kind == "p-tuning" or [p.requires_grad for p in empty.parameters()] == [p.requires_grad for p in peft.parameters()]   # is a table then


@kinds
@pytest.mark.parametrize("way", ["fused", "data", "in place"])
def test_what_is_written_is_heard_at_once(kind, way):
    """A fused optimizer's step and a running average's ``.data`` leave no trace that PyTorch shows."""
    config = KINDS[kind]()
    config.task_type = "CAUSAL_LM"
    if isinstance(config, LoraConfig):
        config.modules_to_save = ["lm_head"]
    peft = get_peft_model(base(), config, "a").eval()
    for name in ("b", "c") if kind == "arrow" else ():
        peft.add_adapter(name, LoraConfig(**LAYERS, r=2, init_lora_weights=False))
    peft.stack.set_strength("a", 1.0 if peft.lone else 0.5)
    for _ in range(2):
        before = logits(peft, kind)
        for parameter in learning(peft):
            if way == "data":
                parameter.data.copy_(parameter + 0.1 * torch.randn_like(parameter))
            elif way == "in place":
                with torch.no_grad():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        if way == "fused":
            logits(peft, kind, grad=True).pow(2).mean().backward()
            torch.optim.AdamW(learning(peft), lr=0.1, fused=True).step()
        heard = logits(peft, kind)
        assert kind in ("arrow", "cpt") or (heard[:, -10:] - before[:, -10:]).abs().max() > 1e-4
        peft.stack.changed()               # forgets all that was kept
        assert torch.equal(heard, logits(peft, kind))


@kinds
def test_a_model_made_in_inference_mode_runs_and_merges_there(kind, tmp_path):
    peft = rig(kind)
    running = logits(peft, kind)
    for name in peft.peft_config if kind == "arrow" else ["a"]:
        peft.save_pretrained(tmp_path, selected_adapters=[name])
    with torch.inference_mode():
        again = PeftModel.from_pretrained(base(), tmp_path / "a", "a", **({"adapters": EXPERTS} if kind == "xlora" else {}))
        for name in ("b", "c") if kind == "arrow" else ():
            again.load_adapter(tmp_path / name, name)
        tasks = {"task_ids": torch.tensor([1, 0])} if kind in ("poly", "multitask") else {}
        for _ in range(2):
            close(again(input_ids=ids(), **tasks).logits, running, torch.float32)
        with contextlib.suppress(CannotMerge):
            again.merge_adapter()
            close(again(input_ids=ids()).logits, running, torch.float32)


@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if kind not in {"dora", *OTHERS}), "adamss", "poly", "lily"])
def test_a_base_that_is_allowed_to_learn_learns_beside_it(kind):
    """DoRA is left out: its paper takes the norm for a constant."""
    peft = rig(kind).double()
    layer = peft.adapted["model.layers.1.self_attn.q_proj"]
    weight, x, told = layer.bare.weight.requires_grad_(), torch.randn(5, 7, 32).double(), torch.zeros(5, dtype=torch.long)
    with peft.stack.telling(**({"task_ids": told} if kind == "poly" else {})):
        layer(x).square().sum().backward()
        step = 1e-6 * torch.randn_like(weight)
        with torch.no_grad():
            weight += step
            above = layer(x).square().sum()
            weight -= 2 * step
            below = layer(x).square().sum()
    torch.testing.assert_close((weight.grad * step).sum(), (above - below) / 2, rtol=1e-4, atol=1e-7)


def saved_alone(peft: PeftModel, name: str, folder) -> Any:
    peft.save_pretrained(folder, selected_adapters=[name])
    return folder / name


@pytest.mark.parametrize("kind", [*list(KINDS)[:-len(OTHERS)], "adamss", "poly", "lily", "alora", "arrow", "ln tuning", "words"])
@pytest.mark.parametrize(("other", "dtype"), [("lora", torch.bfloat16), ("oft", torch.float32)], ids=["lora-bfloat16", "oft-float32"])
def test_in_a_stack_with_another_kind_it_merges_to_what_it_runs(kind, other, dtype):
    """Below a delta and below a map. Routed kinds go on above and below what is merged."""
    peft = rig(kind, dtype)
    peft.add_adapter("other", KINDS[other]())
    peft.set_adapter({"a": 0.5, "other": 1.0})
    running = logits(peft, kind)
    routed = isinstance(law(peft.peft_config["a"]), Routed)
    peft.merge_adapter(["other"] if routed and not isinstance(law(peft.peft_config["other"]), MapMethod) else None if not routed else [])
    close(logits(peft, kind), running, dtype)
    peft.unmerge_adapter()
    peft.delete_adapter("other")
    peft.set_adapter({"a": 0.0})
    assert torch.equal(logits(peft, kind), logits(plain(dtype)))
