"""Order, cuts and padding: pure functions, every row once a pass, never dearer than one row at a time."""

from hypothesis import given
from hypothesis import strategies as st

from engine.data.render import IGNORED, Rendered
from engine.train.batching import OVERHEAD, Schedule, collate, micro_batches, padded_tokens, shuffled

many_lengths = st.lists(st.integers(1, 600), min_size=1, max_size=60)


@given(many_lengths, st.integers(1, 16), st.integers(0, 5), st.integers(1, 4))
def test_every_pass_visits_every_row_once_in_even_steps(lengths, rows_per_step, seed, passes):
    schedule = Schedule(lengths, rows_per_step, passes, seed)
    assert len(schedule) == passes * schedule.per_pass
    for number in range(passes):
        steps = [schedule[number * schedule.per_pass + k] for k in range(schedule.per_pass)]
        assert sorted(i for step in steps for i in step) == list(range(len(lengths)))
        assert max(map(len, steps)) <= rows_per_step and max(map(len, steps)) - min(map(len, steps)) <= 1


@given(many_lengths, st.integers(0, 3))
def test_the_order_depends_on_seed_and_step_alone(lengths, seed):
    one, other = Schedule(lengths, 4, 5, seed), Schedule(lengths, 4, 5, seed)
    backwards = [other[k] for k in reversed(range(len(other)))]
    assert [one[k] for k in range(len(one))] == backwards[::-1]


def test_passes_and_seeds_differ_and_a_limit_cuts_only_the_end():
    lengths = list(range(1, 41))
    schedule, limited = Schedule(lengths, 4, 2, 0), Schedule(lengths, 4, 2, 0, max_steps=7)
    first, second = ([schedule[k] for k in range(a, a + 10)] for a in (0, 10))
    assert first != second and first != [Schedule(lengths, 4, 2, 1)[k] for k in range(10)]
    assert len(limited) == 7 and [limited[k] for k in range(7)] == first[:7]
    assert shuffled(5, 0, "x") == shuffled(5, 0, "x") != shuffled(5, 0, "y")
    assert len(Schedule(lengths, 8, 0.1, 0)) == 1 and len(Schedule(lengths, 8, 1.5, 0)) == 8


@given(many_lengths, st.integers(1, 2000))
def test_micro_batches_hold_every_row_within_the_budget_and_are_cheap(lengths, budget):
    parts = micro_batches(lengths, budget)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    sizes = [len(part) * max(lengths[i] for i in part) for part in parts]
    assert all(size <= budget or len(part) == 1 for size, part in zip(sizes, parts))
    price = sum(sizes) + OVERHEAD * len(parts)
    assert price <= sum(lengths) + OVERHEAD * len(lengths)     # one row at a time is among the options
    assert sum(sizes) == padded_tokens(lengths, budget)


@given(st.lists(st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=1, max_size=9), min_size=1, max_size=5))
def test_a_batch_learns_exactly_what_the_rows_learn(rows):
    rendered = [Rendered([t for t, _ in row], [t if learned else IGNORED for t, learned in row], []) for row in rows]
    batch = collate(rendered)
    assert batch.learned == sum(row.learned for row in rendered)
    flat = batch.ids.flatten()
    for at, target in zip(batch.where.tolist(), batch.targets.tolist()):
        assert flat[at + 1] == target
        row, place = divmod(at, batch.ids.shape[1])
        assert rendered[row].labels[place + 1] == target
