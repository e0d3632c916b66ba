"""From a spec to what the loop works on."""

from pathlib import Path

from engine.data.shapes import load
from engine.data.split import held_out
from engine.train.prepare import read_material


def test_where_no_held_back_example_can_be_used_it_is_learned_without_a_test(make_spec):
    spec = make_spec(max_length=100)
    for attempt in range(20):              # until the lot falls on the long one
        Path(spec.data).write_text(f"question,answer\nHow long is it?,Short {attempt}\nAnd this?,{'very ' * 500}long\n")
        if held_out(load(spec.data).rows.keys, spec.holdout) == {1}:
            break
    material = read_material(spec)
    assert len(material.learn) == 1 and material.test == material.tested == []
    assert any("held back" in note for note in material.notes) and any("longer than 100 tokens" in note for note in material.notes)
