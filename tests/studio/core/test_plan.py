"""Presets, prices and drafts."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import StudioError
from engine.specs import PlanReport
from engine.store.resources import resource
from studio.core import plan
from studio.core.text import amounts


def draft(**values) -> plan.Draft:
    return plan.Draft(**{"data": "d.csv", "base": "base", "name": "Shop answers", **values})


@pytest.mark.parametrize("preset", plan.PRESETS)
@pytest.mark.parametrize("learned", [0, 10, 200, 201, 5000])
def test_every_preset_gives_a_plan_that_can_be_carried_out(preset, learned, tmp_path):
    spec = plan.to_spec(draft(preset=preset), tmp_path, learned)
    assert spec.problems() == {} and spec.method_config["r"] in (8, 16, 32) and spec.out == str(tmp_path / "Shop-answers")
    assert type(spec).from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@given(st.integers(1, 100_000))
def test_a_quick_check_looks_at_two_hundred_examples_at_most_and_others_at_all(learned):
    assert plan.preset_spec("quick", learned)["passes"] * learned <= plan.QUICK_ROWS + 1e-6 or learned <= plan.QUICK_ROWS
    assert all(plan.preset_spec(key, learned)["passes"] >= 1 for key in ("balanced", "best"))


@given(st.floats(1, 1e6), st.integers(1, 10_000))
def test_a_quick_check_takes_five_minutes_at_most(seconds, steps):
    report = PlanReport(rows=100, steps=steps, seconds=seconds, seconds_error=seconds / 10)
    spec = plan.within_five_minutes(plan.to_spec(draft(preset="quick"), resource()), report)
    done = min(steps, spec.max_steps or steps)
    assert done == 1 or done * seconds / steps <= plan.QUICK_SECONDS + 1e-6


def test_what_a_person_changed_wins_over_the_preset(tmp_path):
    spec = plan.to_spec(draft(preset="best", overrides={"passes": 7.0, "seed": 3}, method_overrides={"r": 64}, prompts=["  Hello? ", ""]),
                        tmp_path)
    assert (spec.passes, spec.seed, spec.method_config["r"], spec.prompts) == (7.0, 3, 64, ["Hello?"])
    assert spec.method_config["lora_alpha"] == 64 and spec.early_stop


@pytest.mark.parametrize("preset", ["quick", "best"])
def test_another_preset_decides_anew_what_presets_decide(preset, tmp_path):
    mine = draft(preset="balanced", overrides={"passes": 9.0, "seed": 3}, method_overrides={"r": 64, "lora_dropout": 0.1})
    spec = plan.to_spec(plan.with_preset(mine, preset), tmp_path)
    usual = plan.to_spec(draft(preset=preset), tmp_path)
    assert (spec.passes, spec.method_config["r"]) == (usual.passes, usual.method_config["r"]) and spec.seed == 3
    assert spec.method_config["lora_dropout"] == 0.1 and plan.with_preset(mine, "balanced") == mine


def test_the_price_is_one_line(tmp_path):
    report = PlanReport(rows=412, steps=155, seconds=130, seconds_error=40, memory_mb=1900, free_memory_mb=8000)
    assert plan.price(report, plan.to_spec(draft(), tmp_path)) == "about 2 min ± 1 · 1.9 of 8.0 GB memory · 3 passes over 412 examples"
    assert " · 1.9 of 8.0 GB memory on each of 2 graphics cards · " in plan.price(replace(report, cards=2), plan.to_spec(draft(), tmp_path))
    quick = plan.within_five_minutes(plan.to_spec(draft(preset="quick"), tmp_path, 412), PlanReport(rows=412, steps=100, seconds=600))
    assert "stops after 5 minutes" in plan.price(PlanReport(rows=412, steps=100, seconds=600, seconds_error=60), quick)


def test_what_is_missing_is_said_step_by_step(tmp_path):
    assert set(plan.missing(plan.Draft(), tmp_path)) == {"data", "model", "plan"}
    assert plan.missing(draft(), tmp_path) == {}
    (tmp_path / "Shop-answers").mkdir()
    assert "Shop answers" in plan.missing(draft(), tmp_path)["plan"]


def test_a_price_too_high_is_a_warning():
    assert not plan.warnings(PlanReport(seconds=60, memory_mb=10, free_memory_mb=20))
    assert len(plan.warnings(PlanReport(seconds=1e5, memory_mb=30, free_memory_mb=20))) == 2


@given(st.integers(1, 10**12), st.floats(1e8, 1e12))
def test_fit_never_prefers_the_larger_model(parameters, free):
    order = ["well", "tight", "big"]
    assert order.index(plan.fit(parameters, free).kind) <= order.index(plan.fit(2 * parameters, free).kind)


@pytest.mark.parametrize("damaged", [None, {}, {"preset": "none"}, {"prompts": "no list", "name": 3}, {"overrides": []}])
def test_a_draft_survives_whatever_the_settings_hold(damaged):
    revived = plan.Draft.from_dict(damaged)
    assert revived.preset in plan.PRESETS and isinstance(revived.prompts, list) and isinstance(revived.overrides, dict)


def test_a_draft_comes_back_as_it_was():
    mine = draft(prompts=["a"], overrides={"seed": 2})
    assert plan.Draft.from_dict(json.loads(json.dumps(mine.to_dict()))) == mine


def test_the_samples_make_complete_plans(tmp_path):
    found = plan.samples(resource("samples"))
    assert {sample.key for sample in found} == {"shop", "style"}
    for sample in found:
        chosen = plan.sample_draft(sample, "base")
        assert plan.missing(chosen, tmp_path) == {} and sample.path.exists()
        spec = plan.to_spec(chosen, tmp_path, sample.rows)
        assert spec.problems() == {} and {k: spec.method_config[k]
                                          for k in sample.settings["method_config"]} == sample.settings["method_config"]
        assert all(getattr(spec, k) == v for k, v in sample.settings.items() if k != "method_config")


def test_missing_samples_are_a_sentence(tmp_path):
    with pytest.raises(StudioError, match="missing"):
        plan.samples(tmp_path)


@pytest.mark.parametrize("seconds, said", [(0.2, "under a second"), (1, "1 second"), (44, "45 seconds"), (130, "2 min"),
                                           (3 * 3600 + 300, "3 h 5 min"), (25 * 3600, "25 h"),
                                           (4 * 86400, "4 days")])
def test_durations_as_people_say_them(seconds, said):
    assert amounts.duration(seconds) == said


@pytest.mark.parametrize("amount, said", [(0, "0 kB"), (512, "1 kB"), (269_060_552, "269 MB"), (1.94e9, "1.9 GB"), (4.2e6, "4.2 MB")])
def test_sizes_as_people_say_them(amount, said):
    assert amounts.size(amount) == said
