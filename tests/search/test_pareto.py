"""The front against brute force, and every rule by hand."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.search.objective import ValScores
from iconoclast_tl.search.pareto import Candidate, Rule, choose, pareto_front, take
from tests.search.specs import SPEC


def candidate(
    number: int, rate: float, kl: float, spill: float = 0.0, first: float = 0.0, train: float | None = None
) -> Candidate:
    return Candidate(number=number, spec=SPEC, scores=ValScores(rate, spill, first, kl), train_rate=train)


def dominates(a: Candidate, b: Candidate) -> bool:
    better = (a.scores.behaviour_rate, a.scores.kl_sequence), (b.scores.behaviour_rate, b.scores.kl_sequence)
    return better[0] != better[1] and all(x <= y for x, y in zip(*better, strict=True))


def test_the_front_is_what_nothing_dominates() -> None:
    rng = random.Random(0)
    for _ in range(50):
        points = [candidate(i, rng.randint(0, 6) / 6, rng.randint(0, 6) / 6) for i in range(rng.randint(1, 15))]
        front = pareto_front(points, "sequence")
        expected = {
            (p.scores.behaviour_rate, p.scores.kl_sequence) for p in points if not any(dominates(q, p) for q in points)
        }
        assert {(p.scores.behaviour_rate, p.scores.kl_sequence) for p in front} == expected
        assert len(front) == len(expected)
        assert not any(dominates(a, b) for a in front for b in front)


def test_lexicographic_asks_behaviour_then_spill_then_kl() -> None:
    points = [
        candidate(0, 0.1, 0.0),
        candidate(1, 0.0, 0.1, 0.2),
        candidate(2, 0.0, 0.9, 0.1),
        candidate(3, 0.0, 0.5, 0.1),
    ]
    assert choose(points, "lexicographic", 0.05, "sequence").number == 3
    assert choose(points[:2], "lexicographic", 0.05, "sequence").number == 1


def test_where_val_says_the_same_the_train_prompts_decide() -> None:
    points = [
        candidate(0, 0.0, 0.1, train=0.2),
        candidate(1, 0.0, 0.3, train=0.0),
        candidate(2, 0.0, 0.4, train=0.0),
        candidate(3, 0.1, 0.2, train=0.0),
        candidate(4, 0.1, 0.05, train=0.5),
        candidate(5, 0.0, 0.3, spill=0.1, train=0.0),
    ]
    assert [p.number for p in pareto_front(points, "sequence")] == [1, 0, 4]
    assert choose(points, "lexicographic", 0.05, "sequence").number == 1
    spilling = [replace(p, scores=replace(p.scores, spill_rate=float(p.number == 1))) for p in points[:2]]
    assert choose(spilling, "lexicographic", 0.05, "sequence").number == 0  # what val says of neutral prompts is first
    unasked = [replace(p, train_rate=None) for p in points]
    assert [p.number for p in pareto_front(unasked, "sequence")] == [0, 4]
    assert choose(unasked, "lexicographic", 0.05, "sequence").number == 0


def test_the_knee_is_farthest_below_the_line_between_the_ends() -> None:
    points = [candidate(0, 0.0, 1.0), candidate(1, 0.1, 0.2), candidate(2, 0.5, 0.1), candidate(3, 1.0, 0.0)]
    assert choose(points, "knee", 0.05, "sequence").number == 1
    assert choose(points[:1], "knee", 0.05, "sequence").number == 0


def test_least_kl_keeps_to_its_rate_or_says_what_was_reached() -> None:
    points = [candidate(0, 0.04, 0.5), candidate(1, 0.05, 0.3), candidate(2, 0.06, 0.1)]
    assert choose(points, "least-kl", 0.05, "sequence").number == 1
    with pytest.raises(UserError, match=r"got 0\.04 at best"):
        choose(points, "least-kl", 0.01, "sequence")


def test_the_kind_of_kl_decides() -> None:
    points = [candidate(0, 0.0, kl=0.1, first=0.9), candidate(1, 0.0, kl=0.9, first=0.1)]
    assert choose(points, "lexicographic", 0.05, "sequence").number == 0
    assert choose(points, "lexicographic", 0.05, "first_token").number == 1


def test_no_trials_no_choice() -> None:
    with pytest.raises(UserError, match="no trial finished"):
        choose([], "knee", 0.05, "sequence")


RULES: tuple[Rule, ...] = ("interval", "lexicographic", "knee", "least-kl")


def test_strengthening_is_suppressing_what_is_missed() -> None:
    rng = random.Random(1)
    differs = 0
    for _ in range(30):
        points = [
            candidate(i, rng.randint(0, 8) / 8, rng.randint(0, 8) / 8, rng.randint(0, 2) / 2, train=rng.randint(0, 1))
            for i in range(8)
        ]
        mirrored = [
            replace(
                p,
                scores=replace(p.scores, behaviour_rate=1 - p.scores.behaviour_rate),
                train_rate=1 - (p.train_rate or 0),
            )
            for p in points
        ]
        fronts = pareto_front(points, "sequence", "suppress"), pareto_front(mirrored, "sequence", "strengthen")
        assert [p.number for p in fronts[0]] == [p.number for p in fronts[1]]
        for rule in RULES:
            chosen = choose(points, rule, 1.0, "sequence").number
            assert choose(mirrored, rule, 1.0, "sequence", "strengthen").number == chosen
            differs += choose(mirrored, rule, 1.0, "sequence", "suppress").number != chosen
        bound = min(p.scores.behaviour_rate for p in points)
        chosen = choose(points, "least-kl", bound, "sequence").number
        assert choose(mirrored, "least-kl", bound, "sequence", "strengthen").number == chosen
    assert differs > 20  # the goal could have been ignored
    assert ValScores(0.25, 0, 0, 0).shortfall("suppress") == 0.25
    assert ValScores(0.25, 0, 0, 0).shortfall("strengthen") == 0.75


def test_of_equal_points_the_earliest_is_taken_whatever_their_order() -> None:
    points = [candidate(number, 0.0, 0.5) for number in (4, 2, 3)]
    assert [point.number for point in pareto_front(points, "sequence")] == [2]
    assert [choose(points, rule, 0.1, "sequence").number for rule in RULES] == [2, 2, 2, 2]


def test_the_knee_is_a_point_of_the_front_on_axes_scaled_to_their_range() -> None:
    front = [candidate(0, 0.0, 0.001), candidate(1, 0.5, 0.0001), candidate(2, 1.0, 0.0)]
    assert choose(front, "knee", 0.05, "sequence").number == 1  # unscaled, its KL would weigh nothing
    beaten = [candidate(3, 2.0, 0.002), *front, candidate(4, 0.0, 1.0)]
    assert choose(beaten, "knee", 0.05, "sequence").number == 1


def test_a_candidate_is_taken_by_its_number_not_its_place() -> None:
    points = [candidate(3, 0.0, 0.1), candidate(0, 0.1, 0.0)]
    assert take(points, 0) is points[1]
    assert take(points, 3) is points[0]
    with pytest.raises(UserError, match=r"there is no candidate 1: want one of 3, 0"):
        take(points, 1)


def counted(number: int, missed: int, kl: float, spilled: int = 0, train: int = 0, broken: int = 0) -> Candidate:
    """60 val and 48 train target prompts, 60 val neutral ones."""
    scores = ValScores(missed / 60, spilled / 60, 0.0, kl, broken / 60, 60, 60)
    return Candidate(number=number, spec=SPEC, scores=scores, train_rate=train / 48, train_n=48)


def test_the_least_kl_is_taken_of_points_that_chance_cannot_tell_from_the_best() -> None:
    points = [counted(0, 0, 0.035), counted(1, 0, 0.013, train=1), counted(2, 3, 0.004), counted(3, 40, 0.001)]
    assert choose(points, "interval", 0.05, "sequence").number == 1
    assert choose(points, "lexicographic", 0.05, "sequence").number == 0  # 2.7 times the KL for one prompt of 108
    assert choose([points[0], points[2]], "interval", 0.05, "sequence").number == 0  # three prompts are told
    few = [counted(0, 30, 0.2), counted(1, 33, 0.1), counted(2, 45, 0.01)]
    assert choose(few, "interval", 0.05, "sequence").number == 1  # of many that miss, chance moves more


def test_what_fell_apart_is_missed_and_spill_is_held_against_the_least() -> None:
    broken = [counted(0, 0, 0.1), counted(1, 0, 0.01, broken=6)]
    assert choose(broken, "interval", 0.05, "sequence").number == 0
    assert choose(broken, "lexicographic", 0.05, "sequence").number == 0
    spilling = [counted(0, 0, 0.1), counted(1, 0, 0.05, spilled=1), counted(2, 0, 0.01, spilled=9)]
    assert choose(spilling, "interval", 0.05, "sequence").number == 1
