"""“Stop and keep”: a run that is asked to finish tests its last state, keeps its best one and ends like any other."""

from pathlib import Path

from engine.events import Evaluated, Finished, Step, Stopped
from engine.store.library import read_adapter
from engine.store.runs import RunFolder
from engine.train import train


def test_asked_to_finish_it_keeps_what_it_has(make_spec, tmp_path):
    spec = make_spec(passes=30, early_stop=False)
    run, seen = RunFolder.create(tmp_path / "run", spec), []
    for event in train(spec, run):
        seen.append(event)
        if isinstance(event, Step) and event.step == 4:
            run.ask("finish")
    last = [e for e in seen if isinstance(e, Step)][-1]
    assert isinstance(seen[-1], Finished) and last.step == 4 < last.steps
    result, tested = seen[-1].result, [e for e in seen if isinstance(e, Evaluated)]
    assert result["steps"] == result["best_step"] == 4 == tested[-1].step and result["error_after"] == tested[-1].error
    assert read_adapter(Path(spec.out)).fingerprint == result["fingerprint"]


def test_what_a_stopped_run_saved_is_kept_without_another_step(make_spec, tmp_path):
    spec = make_spec(passes=30, early_stop=False)
    run = RunFolder.create(tmp_path / "run", spec)
    for event in train(spec, run):
        if isinstance(event, Step) and event.step == 4:
            run.ask("pause")
    assert isinstance(event, Stopped) and event.step == 4
    run.clear()
    run.ask("finish")
    seen = list(train(spec, run))
    assert isinstance(seen[-1], Finished) and seen[-1].result["steps"] == 4 and not any(isinstance(event, Step) for event in seen)
    assert read_adapter(Path(spec.out)).fingerprint == seen[-1].result["fingerprint"]
