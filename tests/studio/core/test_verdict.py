"""The sentence on a curve."""

import pytest

from studio.core.verdict import judge

FALLING = [3 - 0.04 * i for i in range(40)]
LEVEL = [1.5] * 40


@pytest.mark.parametrize("learned, unseen, kind", [
    ([], [], "waiting"), ([3.0, 2.9], [3.0], "waiting"), (FALLING, [3.0], "learning"), (LEVEL, [], "learning"),
    (FALLING, [3.0, 2.5], "improving"), (FALLING, [3.0, 2.5, 2.2, 2.0], "improving"),
    (FALLING, [3.0, 2.0, 1.999, 1.998], "flat"), (FALLING, [3.0, 2.0, 2.3], "by_heart"), (LEVEL, [3.0, 2.0, 2.3], "worse"),
    (FALLING, [2.0, 2.1], "learning"), (FALLING, [2.0, 2.1, 2.2], "no_better"), ([float("nan")], [3.0], "broken"),
    (FALLING, [3.0, float("inf")], "broken")])
def test_rules(learned, unseen, kind):
    assert judge(learned, unseen).kind == kind


def test_the_best_step_and_the_gain_are_named():
    assert "step 20" in judge(FALLING, [3.0, 2.0, 2.3], [0, 20, 40]).sentence
    assert "50 %" in judge(FALLING, [3.0, 2.0, 1.5], [0, 20, 40]).sentence


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_unit_of_the_error_does_not_matter(scale):
    for unseen in ([3.0, 2.5, 2.2], [3.0, 2.0, 2.3], [3.0, 2.0, 1.999]):
        assert judge([scale * v for v in FALLING], [scale * v for v in unseen]) == judge(FALLING, unseen)


def test_every_worry_comes_with_advice():
    for learned, unseen in ((FALLING, [3.0, 2.0, 2.3]), (LEVEL, [3.0, 2.0, 2.3]), (FALLING, [2.0, 2.1, 2.2]), ([float("nan")], [])):
        verdict = judge(learned, unseen)
        assert verdict.tone in ("warn", "bad") and verdict.advice
