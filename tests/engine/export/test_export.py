"""An export is complete and proved, or it is not there under its name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.data.render import PLAIN_TEMPLATE
from engine.errors import BadAdapter, DiskFull, InvalidSpec, StudioError, VerificationFailed, WrongBase, explain
from engine.events import Checked, Finished, Progress, Stopped
from engine.export import export as module, probe, verify
from engine.export.export import export
from engine.generate.sampling import answer
from engine.merge import stream
from engine.specs import ExportSpec, StackEntry
from engine.store.library import read_adapter, read_model
from engine.store.runs import RunFolder
from tests.support.adapters import make_adapter
from tests.support.tiny import save_base

QUESTION = "What do you sell?"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    root = tmp_path_factory.mktemp("shelf")
    base = save_base(root / "base")
    return base, make_adapter(root / "style", base, 1), make_adapter(root / "facts", base, 2)


@pytest.fixture
def order(shelf, tmp_path):
    base, style, facts = shelf
    spec = ExportSpec(str(base), str(tmp_path / "exports" / "mine"), [StackEntry(str(style), 0.5), StackEntry(str(facts), 1.0)],
                      prompts=[QUESTION])
    return spec, RunFolder.create(tmp_path / "runs" / "7", spec)


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    for place in (probe, verify):
        monkeypatch.setattr(place, "ANSWER", 10)


def contents(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) if folder.exists() else []


def test_what_is_exported_is_what_was_heard(shelf, order):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec, run = order
    events = list(export(spec, run))
    result = events[-1].result
    checks = {e.name: e for e in events if isinstance(e, Checked)}
    assert set(checks) == {"reloads", "untouched", "chat-template", "stop-tokens", "vocabulary", "differs-from-base", "equals-live-stack",
                           "same-probabilities", "same-strength", "same-likeliest-word", "same-answers"}
    assert all(c.passed and c.sentence for c in checks.values()) and isinstance(events[-1], Finished) and result["verified"]
    assert any(isinstance(e, Progress) and e.total and e.done == e.total for e in events)

    model, tokenizer = AutoModelForCausalLM.from_pretrained(result["path"]), AutoTokenizer.from_pretrained(result["path"])
    receipt = json.loads(open(result["receipt"]).read())
    said = answer(model, tokenizer, [{"role": "user", "content": QUESTION}], max_new_tokens=10)
    sample = next(s for s in receipt["samples"] if s["question"] == QUESTION)
    assert said == sample["export"] == sample["stack"] and receipt["verified"]
    base, style, facts = shelf
    assert receipt["base"]["fingerprint"] == read_model(base).fingerprint
    assert [(a["name"], a["fingerprint"], a["strength"]) for a in receipt["adapters"]] == [
        ("style", read_adapter(style).fingerprint, 0.5), ("facts", read_adapter(facts).fingerprint, 1.0)]
    assert "model.safetensors" in receipt["files"] and str(base) not in json.dumps(receipt)
    card = open(f"{result['path']}/README.md").read()
    assert "base_model: \"base\"" in card and "| style | LORA | 0.5 |" in card and "## Verified" in card
    assert result["bytes"] > read_model(base).bytes
    assert list(export(spec, run))[-1].result["path"] == result["path"]        # killed after the rename, asked again: already done


def test_a_model_that_was_never_taught_to_chat_is_exported_with_the_template_it_was_heard_with(order, tmp_path):
    from transformers import AutoTokenizer

    spec, run = order
    silent = shutil.copytree(spec.base, tmp_path / "silent")
    config = json.loads((silent / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (silent / "tokenizer_config.json").write_text(json.dumps(config))
    (silent / "chat_template.jinja").unlink(missing_ok=True)
    spec.base = str(silent)
    *_, finished = export(spec, run)
    assert finished.result["verified"]
    assert AutoTokenizer.from_pretrained(finished.result["path"]).chat_template == PLAIN_TEMPLATE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_formats_are_verified_within_their_tolerance(order, dtype):
    spec, run = order
    spec.dtype = dtype
    for entry in spec.stack:
        entry.strength /= 5                # a quiet stack: its effect must survive the rounding all the same
    events = list(export(spec, run))
    assert events[-1].result["verified"] and "same-answers" not in [e.name for e in events if isinstance(e, Checked)]


def test_a_merge_at_the_wrong_strength_is_caught_even_through_rounding(shelf, order, monkeypatch):
    """bfloat16 moves every logit by more than this error does; its direction gives it away."""
    spec, run = order
    spec.dtype = "bfloat16"
    for entry in spec.stack:
        entry.strength /= 6
    original = module.plan_merge

    def too_quiet(base, entries, dtype):
        return original(base, [StackEntry(entry.adapter, 0.8 * entry.strength) for entry in entries], dtype)

    listened = module._listen
    monkeypatch.setattr(module, "plan_merge", too_quiet)
    monkeypatch.setattr(module, "_listen", lambda plan, *rest: listened(original(plan.base, spec.stack, spec.dtype), *rest))
    with pytest.raises(VerificationFailed) as caught:
        list(export(spec, run))
    assert "same-strength" in caught.value.facts["checks"]


def test_unverified_when_asked(order):
    spec, run = order
    spec.verify = False
    result = list(export(spec, run))[-1].result
    assert result["verified"] is False and "not verified" in open(f"{result['path']}/README.md").read()


def _the_base_instead(folder, spec):
    base = load_file(f"{spec.base}/model.safetensors")
    save_file(base, folder / "model.safetensors", {"format": "pt"})


def _half_the_strength(folder, spec):
    base, mine = load_file(f"{spec.base}/model.safetensors"), load_file(folder / "model.safetensors")
    save_file({k: (base[k] + mine[k]) / 2 for k in mine}, folder / "model.safetensors", {"format": "pt"})


def _one_layer_less(folder, spec):
    base, mine = load_file(f"{spec.base}/model.safetensors"), load_file(folder / "model.safetensors")
    mine["model.layers.1.mlp.down_proj.weight"] = base["model.layers.1.mlp.down_proj.weight"]
    save_file(mine, folder / "model.safetensors", {"format": "pt"})


def _an_untouched_norm(folder, spec):
    mine = load_file(folder / "model.safetensors")
    mine["model.norm.weight"][0] += 1e-6
    save_file(mine, folder / "model.safetensors", {"format": "pt"})


def _no_tensor(folder, spec):
    mine = load_file(folder / "model.safetensors")
    del mine["model.norm.weight"]
    save_file(mine, folder / "model.safetensors", {"format": "pt"})


def _cut_off(folder, spec):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def _other_template(folder, spec):
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def _other_stop(folder, spec):
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": 77}))


def _not_numbers(folder, spec):
    mine = load_file(folder / "model.safetensors")
    mine["model.layers.0.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(mine, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("harm, name", [
    (_the_base_instead, "differs-from-base"), (_half_the_strength, "same-strength"), (_one_layer_less, "equals-live-stack"),
    (_an_untouched_norm, "untouched"), (_no_tensor, "reloads"),
    (_cut_off, "reloads"), (_other_template, "chat-template"), (_other_stop, "stop-tokens"),
    (_not_numbers, "equals-live-stack")])
def test_every_kind_of_wrong_result_is_caught(order, monkeypatch, harm, name):
    spec, run = order

    def harmed(folder, plan, dtype="same", asked_to_stop=lambda: False):
        yield from merge_into(folder, plan, dtype, asked_to_stop)
        harm(folder, spec)

    merge_into = module.merge_into
    monkeypatch.setattr(module, "merge_into", harmed)
    events = []
    with pytest.raises(VerificationFailed, match="not what you heard") as caught:
        for event in export(spec, run):
            events.append(event)
    assert name in [e.name for e in events if isinstance(e, Checked) and not e.passed]
    exports = run.path.parent.parent / "exports"
    assert [p.name for p in exports.iterdir()] == ["mine-unverified"]           # nothing that looks finished
    aside = exports / "mine-unverified"
    assert caught.value.facts["path"] == str(aside) and "NOT verified" in (aside / "README.md").read_text()
    assert json.loads((aside / "receipt.json").read_text())["verified"] is False
    monkeypatch.setattr(module, "merge_into", merge_into)
    assert list(export(spec, run))[-1].result["verified"]                       # the name is still free


@pytest.mark.parametrize("when", ["Baking in", "Checking the finished model", "Listening to the live stack"])
@pytest.mark.parametrize("request_, resumable", [("cancel", False), ("pause", True)])
def test_cancel_leaves_nothing(order, when, request_, resumable):
    spec, run = order
    events = []
    for event in export(spec, run):
        events.append(event)
        if isinstance(event, Progress) and event.stage == when:
            run.ask(request_)
    assert events[-1] == Stopped(request_, resumable=resumable) and contents(run.path.parent.parent / "exports") == []
    run.clear()
    assert list(export(spec, run))[-1].result["verified"]


def test_left_overs_of_a_killed_attempt_are_swept(order):
    spec, run = order
    exports = run.path.parent.parent / "exports"
    spec.out = str(exports / "mine [2]")
    for name in (".mine [2].12345678.part", ".mine 2.12345678.part"):          # the second is somebody else's
        (exports / name).mkdir(parents=True)
        (exports / name / "model.safetensors").write_bytes(b"x" * 1000)
    list(export(spec, run))
    assert sorted(p.name for p in exports.iterdir()) == [".mine 2.12345678.part", "mine [2]"]


def test_places_that_are_refused(shelf, order, tmp_path):
    base, style, _ = shelf
    spec, run = order
    full = tmp_path / "full"
    full.mkdir()
    (full / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(base)
    before = contents(base), contents(style)
    for out in (full, base, base / "inside", style / "merged", tmp_path / "file", tmp_path / "link", tmp_path / "link" / "inside"):
        spec.out = str(out)
        with pytest.raises(StudioError, match="already there|cannot be put"):
            list(export(spec, run))
    assert (contents(base), contents(style)) == before and (full / "letter.txt").read_text() == "dear"


def test_empty_stacks_and_stacks_without_effect_are_refused(shelf, order, tmp_path):
    base, style, facts = shelf
    spec, run = order
    silent = make_adapter(tmp_path / "silent", base, loud=0.0)
    for stack in ([], [StackEntry(str(style), 0.0)], [StackEntry(str(style), 1.0, enabled=False)]):
        spec.stack = stack
        with pytest.raises(InvalidSpec, match="no adapter"):
            list(export(spec, run))
    for stack in ([StackEntry(str(silent))], [StackEntry(str(style), 0.5), StackEntry(str(style), -0.5)]):
        spec.stack = stack
        with pytest.raises(BadAdapter, match="changes nothing"):
            list(export(spec, run))
    assert contents(tmp_path / "exports") == []


def test_another_base_is_refused(order, tmp_path):
    spec, run = order
    spec.base = str(save_base(tmp_path / "other", seed=3))
    with pytest.raises(WrongBase, match="another model"):
        list(export(spec, run))
    assert contents(tmp_path / "exports") == []


def test_a_full_disk_is_told_beforehand(order, monkeypatch, tmp_path):
    spec, run = order
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1_000_000})())
    with pytest.raises(DiskFull, match="not enough room"):
        list(export(spec, run))
    assert contents(tmp_path / "exports") == []


@pytest.mark.parametrize("written", [0, 1, 9])
def test_a_disk_that_fills_up_on_the_way_leaves_nothing(order, monkeypatch, tmp_path, written):
    import errno

    spec, run = order
    original, count = stream.ShardWriter._write, [0]

    def full(self, data):
        count[0] += 1
        if count[0] > written:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, data)

    monkeypatch.setattr(stream.ShardWriter, "_write", full)
    with pytest.raises(OSError) as caught:
        list(export(spec, run))
    assert isinstance(explain(caught.value), DiskFull) and contents(tmp_path / "exports") == []


def test_the_live_stack_and_the_export_leave_no_trace_in_torch(order):
    spec, run = order
    state = torch.random.get_rng_state()
    list(export(spec, run))
    assert torch.equal(state, torch.random.get_rng_state()) and torch.is_grad_enabled()
