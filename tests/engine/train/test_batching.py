"""Order, cuts and padding: pure functions, every row once a pass, never dearer than one row at a time."""

from hypothesis import given
from hypothesis import strategies as st

from engine.data.render import IGNORED, Rendered
from engine.train.batching import OVERHEAD, Schedule, collate, common_prefix, computed_tokens, micro_batches, padded, shuffled

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


@given(many_lengths, st.integers(1, 2000), st.none() | st.integers(0, 50))
def test_micro_batches_hold_every_row_within_the_budget_and_are_cheap(lengths, budget, shared):
    lengths = [n + (shared or 0) for n in lengths]
    parts = micro_batches(lengths, budget, shared)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    sizes = [computed_tokens([lengths[i] for i in part], shared) for part in parts]
    assert all(size <= budget or len(part) == 1 for size, part in zip(sizes, parts))
    price = sum(sizes) + OVERHEAD * len(parts)
    assert price <= sum(map(padded, lengths)) + OVERHEAD * len(lengths)      # one row at a time is among the options


flagged = st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=1, max_size=9)


@given(st.lists(st.tuples(st.integers(1, 3), st.just(False)), max_size=5), st.lists(flagged, min_size=1, max_size=5), st.booleans())
def test_a_batch_learns_exactly_what_the_rows_learn(start, rows, share):
    rendered = [Rendered([t for t, _ in row], [t if learned else IGNORED for t, learned in row], []) for row in ([*start, *row] for row in rows)]
    batch, prefix = collate(rendered, share=share), common_prefix(rendered) if share else 0
    assert batch.learned == sum(row.learned for row in rendered)
    flat, lengths = batch.ids.flatten(), [len(row.ids) for row in rendered]
    assert len(flat) == computed_tokens(lengths, prefix if share else None)
    assert all(row.ids[:prefix] == flat[:prefix].tolist() for row in rendered)
    begins = [prefix + sum(lengths[:i]) - i * prefix if share else i * padded(max(lengths)) for i in range(len(rows))]
    for at, target in zip(batch.where.tolist(), batch.targets.tolist()):
        assert at >= prefix and flat[at + 1] == target         # the learned token follows in its own row
        row = max(i for i, begin in enumerate(begins) if begin <= at)
        assert rendered[row].labels[prefix + at - begins[row] + 1] == target
    if share:
        assert batch.layout.positions.shape == batch.ids.shape and batch.layout.positions[0, begins].tolist() == [prefix] * len(rows)


@given(st.lists(flagged, min_size=2, max_size=5))
def test_the_common_beginning_is_common_and_learns_nothing(rows):
    rendered = [Rendered([t for t, _ in row], [t if learned else IGNORED for t, learned in row], []) for row in rows]
    prefix = common_prefix(rendered)
    assert len({tuple(row.ids[:prefix]) for row in rendered}) == 1 and all(len(row.ids) > prefix for row in rendered)
    assert all(label == IGNORED for row in rendered for label in row.labels[1:prefix + 1])
