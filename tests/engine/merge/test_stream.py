"""The streamed merge is the in-memory merge is the running stack, for every layout, dtype and strength; and it stays small."""

import json
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file, save_file

from engine.bases.load import load_model
from engine.errors import BadAdapter, BadModel, Cancelled, DiskFull
from engine.events import Note, Progress
from engine.merge import stream
from engine.merge.blocks import merged_blocks
from engine.merge.plan import plan_merge
from engine.merge.stream import merge_into
from engine.mix.stack import StackOnBase
from engine.specs import StackEntry
from engine.store.library import read_model
from tests.support.adapters import make_adapter
from tests.support.tiny import make_tokenizer, save_base

IDS = torch.tensor([[5, 9, 40, 77, 120, 3]])
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_gpt2(folder):
    """Conv1D layers, tied head, and files whose names lack the model's prefix, as the published GPT-2 has them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=384, n_positions=128, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2,
                                           initializer_range=0.1))
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("transformer."): t for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    make_tokenizer().save_pretrained(folder)
    return folder


def save_sharded(folder):
    from tests.support.tiny import make_model

    make_model(4, tied=False).save_pretrained(folder, max_shard_size="60KB")
    make_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    root = tmp_path_factory.mktemp("shelf")
    bases = {"tied": save_base(root / "tied"), "bf16": save_base(root / "bf16", dtype="bfloat16"), "sharded": save_sharded(root / "sharded"),
             "gpt2": save_gpt2(root / "gpt2")}
    kinds = {"tied": {"linear": {}, "embedding": {"target_modules": ["embed_tokens", "q_proj"]}, "head": {"target_modules": ["lm_head", "up_proj"]},
                      "dora": {"use_dora": True, "target_modules": ["q_proj", "embed_tokens"]}},
             "bf16": {"linear": {"use_rslora": True}, "second": {"r": 2}},
             "sharded": {"linear": {"rank_pattern": {"q_proj": 2}}, "both": {"target_modules": ["embed_tokens", "lm_head", *ALL]}},
             "gpt2": {"linear": {"target_modules": ["c_attn", "c_proj"]}, "bias": {"target_modules": ["c_fc"], "lora_bias": True},
                      "embedding": {"target_modules": ["wte"]}}}
    adapters = {base: {name: make_adapter(root / f"{base}-{name}", bases[base], i, **config) for i, (name, config) in enumerate(found.items())}
                for base, found in kinds.items()}
    return bases, adapters


CASES = [("tied", ["linear"]), ("tied", ["embedding"]), ("tied", ["head", "linear"]), ("tied", ["head", "embedding"]), ("tied", ["dora", "linear"]),
         ("bf16", ["linear", "second"]), ("sharded", ["linear"]), ("sharded", ["both", "linear"]),
         ("gpt2", ["linear", "bias"]), ("gpt2", ["embedding"])]


def merge(folder, base, entries, dtype="same", **options):
    folder.mkdir(exist_ok=True)
    return list(merge_into(folder, plan_merge(read_model(base), entries, dtype), dtype, **options))


def live(base, entries, dtype="same"):
    stack = StackOnBase(load_model(base, dtype=dtype), read_model(base))
    stack.arrange(entries)
    return stack


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("base, names", CASES)
def test_streamed_is_merged_is_running(shelf, tmp_path, base, names):
    bases, adapters = shelf
    entries = [StackEntry(str(adapters[base][name]), strength) for name, strength in zip(names, (1.0, 0.6), strict=False)]
    events = merge(tmp_path / "out", bases[base], entries)
    assert not [e for e in events if isinstance(e, Note)]                      # it really was streamed
    assert events[-1] == Progress("Baking in", events[-1].total, events[-1].total, "bytes")
    streamed = load_model(tmp_path / "out")
    running = live(bases[base], entries)
    in_memory = live(bases[base], entries).model.merge_and_unload()
    reference, exact = in_memory.state_dict(), base != "bf16"
    for name, tensor in streamed.state_dict().items():
        torch.testing.assert_close(tensor, reference[name], atol=2e-5 if exact else 1e-2, rtol=1e-5 if exact else 1e-2)
    torch.testing.assert_close(logits(streamed), logits(running.model), atol=2e-3 if exact else 0.5, rtol=1e-3)
    assert not torch.allclose(logits(streamed), logits(load_model(bases[base])), atol=0.05)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["tied", "gpt2"]), st.lists(st.floats(-2, 2, width=16), min_size=2, max_size=2), st.integers(1, 5000))
def test_any_strengths_and_any_block_size(shelf, base, strengths, elements):
    bases, adapters = shelf
    names = ["linear", "embedding"]
    stack = live(bases[base], [StackEntry(str(adapters[base][name]), s) for name, s in zip(names, strengths, strict=True)])
    for layer in stack.model.adapted.values():
        blocks = merged_blocks(layer, stack.model.stack, layer.pristine_weight, torch.float32, elements)
        whole = torch.cat([block.reshape(-1) for block in blocks]).view(layer.pristine_weight.shape)
        torch.testing.assert_close(whole, layer.compose(), atol=1e-4, rtol=1e-4)


def test_names_shards_formats_and_untouched_bytes_are_the_bases(shelf, tmp_path):
    bases, adapters = shelf
    entries = [StackEntry(str(adapters["sharded"]["linear"]), 0.5)]
    plan = plan_merge(read_model(bases["sharded"]), entries)
    merge(tmp_path / "out", bases["sharded"], entries)
    old, new = read_model(bases["sharded"]), read_model(tmp_path / "out")
    assert [(h.path.name, h.tensors) for h in old.headers] == [(h.path.name, h.tensors) for h in new.headers]
    index = "model.safetensors.index.json"
    assert json.loads((old.path / index).read_text())["weight_map"] == json.loads((new.path / index).read_text())["weight_map"]
    changed = set()
    for header in new.headers:
        before, after = load_file(old.path / header.path.name), load_file(header.path)
        changed |= {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == plan.touched and len(changed) == 14


def test_the_tokenizer_comes_along_whole(shelf, tmp_path):
    bases, adapters = shelf
    (bases["tied"] / "tokenizer.model").write_bytes(b"sentencepiece")
    merge(tmp_path / "out", bases["tied"], [StackEntry(str(adapters["tied"]["linear"]))])
    for file in bases["tied"].iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads((bases["tied"] / "config.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_another_number_format(shelf, tmp_path, dtype):
    bases, adapters = shelf
    entries = [StackEntry(str(adapters["tied"]["linear"]), 0.1)]
    merge(tmp_path / "out", bases["tied"], entries, dtype)
    info = read_model(tmp_path / "out")
    assert {e.dtype for h in info.headers for e in h.tensors.values()} == {{"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]}
    model = load_model(info.path)
    assert model.dtype == getattr(torch, dtype)
    torch.testing.assert_close(logits(model.float()), logits(live(bases["tied"], entries).model), atol=0.3, rtol=0.05)


def test_layers_that_cannot_be_found_in_the_files_are_merged_in_memory(shelf, tmp_path, monkeypatch):
    bases, adapters = shelf
    entries = [StackEntry(str(adapters["tied"]["linear"]), 0.7)]
    plan = plan_merge(read_model(bases["tied"]), entries)
    plan.missed = ["model.layers.0.self_attn.q_proj.weight"]
    (tmp_path / "out").mkdir()
    events = list(merge_into(tmp_path / "out", plan))
    assert "in memory" in events[0].text
    torch.testing.assert_close(logits(load_model(tmp_path / "out")), logits(live(bases["tied"], entries).model), atol=2e-3, rtol=1e-3)


def test_renamed_files_are_noticed(shelf, tmp_path):
    bases, adapters = shelf
    odd = save_base(tmp_path / "odd")
    tensors = load_file(odd / "model.safetensors")
    save_file({name.replace("q_proj", "query"): t for name, t in tensors.items()}, odd / "model.safetensors", {"format": "pt"})
    adapter = make_adapter(tmp_path / "a", bases["tied"], 1, recipe=False)
    assert plan_merge(read_model(odd), [StackEntry(str(adapter))]).missed == [f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)]


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_cancel_is_heard_between_tensors(shelf, tmp_path, after):
    bases, adapters = shelf
    seen = []
    plan = plan_merge(read_model(bases["tied"]), [StackEntry(str(adapters["tied"]["linear"]))])
    with pytest.raises(Cancelled):
        seen.extend(merge_into(tmp_path, plan, asked_to_stop=lambda: len(seen) >= after or seen.append(None)))
    assert not (tmp_path / "config.json").exists()


def test_too_little_room_is_told_before_anything_is_written(shelf, tmp_path, monkeypatch):
    bases, adapters = shelf
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(DiskFull, match="not enough room"):
        merge(tmp_path / "out", bases["tied"], [StackEntry(str(adapters["tied"]["linear"]))])
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("streamed", [True, False])
def test_values_that_do_not_fit_the_format_are_refused(shelf, tmp_path, streamed):
    base = read_model(shelf[0]["tied"])
    plan = plan_merge(base, [StackEntry(str(make_adapter(tmp_path / "huge", base.path, loud=300.0)))], "float16")
    plan.missed = [] if streamed else ["model.layers.0.self_attn.q_proj.weight"]
    (tmp_path / "out").mkdir()
    with pytest.raises(BadAdapter, match="not numbers"):
        list(merge_into(tmp_path / "out", plan, "float16"))


def test_nothing_is_baked_into_shrunken_weights(shelf, tmp_path):
    small = save_base(tmp_path / "small")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(BadModel, match="baked"):
        plan_merge(read_model(small), [])


def test_memory_does_not_grow_with_the_model(tmp_path, monkeypatch):
    """The live torch tensors and Python buffers during the merge, counted: a few blocks, not a model."""
    base = save_base(tmp_path / "base", hidden=256, layers=4)
    adapter = make_adapter(tmp_path / "a", base, r=2)
    plan = plan_merge(read_model(base), [StackEntry(str(adapter))])
    largest_block, original = [0], stream._sound
    monkeypatch.setattr(stream, "_sound", lambda block, name: largest_block.append(block.numel()) or original(block, name))
    monkeypatch.setattr(stream, "merged_blocks", lambda *a: merged_blocks(*a, elements=4096))
    monkeypatch.setattr(stream, "COPY", 16384)
    (tmp_path / "out").mkdir()
    tracemalloc.start()
    list(merge_into(tmp_path / "out", plan))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.bytes > 5_000_000 and max(largest_block) <= 4096 and peak < 1_000_000
