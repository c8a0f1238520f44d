"""Selection rules on tables of scores, against what is published of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from iconoclast_tl.directions.config import SelectionConfig
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.selection.rules import DirectionCandidate, Selection, prescreened, select

N_LAYERS = 10


def one(
    point: int, bypass: float = 0.0, induce: float = 1.0, kl: float = 0.01, position: int = -1
) -> DirectionCandidate:
    return DirectionCandidate(
        position=position, point=point, d_prime=point / 10, auroc=0.9, bypass=bypass, induce=induce, kl=kl
    )


ARDITI = SelectionConfig(rule="arditi")


def test_arditi_takes_the_least_bypass_among_those_that_no_filter_removes() -> None:
    table = [one(2, bypass=-1), one(3, bypass=-5), one(4, bypass=-9, kl=0.2), one(5, bypass=-8, induce=-0.1)]
    table += [one(8, bypass=-20), one(7, bypass=-3)]
    found = select(table, ARDITI, N_LAYERS)
    assert found.chosen.point == 3
    reasons = {scored.point: reason for scored, reason in found.table}
    assert reasons == {
        2: None, 3: None, 7: None, 4: "KL above 0.1", 5: "induce below 0", 8: "point 8 or later",
    }  # fmt: skip
    assert [scored.point for scored in found.ranked] == [3, 7, 2]
    both = select([*table, one(9, kl=1, induce=-1), one(6, kl=1, induce=-1)], ARDITI, N_LAYERS)
    assert both.removed == {"KL above 0.1": 2, "induce below 0": 1, "point 8 or later": 2}  # each by the first of them
    loose = select(table, SelectionConfig(rule="arditi", drop_last=0, max_kl=1, min_induce=-1), N_LAYERS)
    assert loose.chosen.point == 8


def test_layers_are_dropped_as_in_the_published_code() -> None:
    """There, layer >= int(n_layer * (1 - 0.2)) goes: 25 of 32, 28 of 36."""
    for n_layers, first in ((32, 25), (36, 28), (10, 8)):
        found = select([one(first - 1), one(first, bypass=-9)], ARDITI, n_layers)
        assert found.chosen.point == first - 1


def test_scores_that_are_not_finite_are_never_chosen() -> None:
    found = select([one(1, bypass=float("nan")), one(2, bypass=3)], ARDITI, N_LAYERS)
    assert found.chosen.point == 2
    assert found.removed == {"a score that is not finite": 1}
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["candidates"][0]["bypass"] is None


def test_where_nothing_is_left_every_rule_says_how_many_it_removed() -> None:
    table = [one(9), one(8), one(3, kl=1), one(4, induce=-2)]
    with pytest.raises(UserError) as error:
        select(table, ARDITI, N_LAYERS)
    line = str(error.value)
    for part in (
        "none of 4",
        "point 8 or later removed 2",
        "KL above 0.1 removed 1",
        "induce below 0 removed 1",
    ):
        assert part in line
    for setting in ("drop_last", "max_kl", "min_induce"):
        assert f"directions.selection.{setting}" in line
    assert "pre-screen" not in line


def test_cosmic_takes_the_largest_sum_of_cosines() -> None:
    table = [replace(one(p), to_neutral=a, to_target=b) for p, a, b in ((2, 0.5, 0.5), (3, 0.9, 0.0), (4, 0.2, 0.9))]
    assert select(table, SelectionConfig(rule="cosmic"), N_LAYERS).chosen.point == 4
    wide = [*table, replace(one(5, kl=2), to_neutral=1.0, to_target=1.0)]
    assert select(wide, SelectionConfig(rule="cosmic"), N_LAYERS).chosen.point == 4


def test_separation_needs_no_scores_and_keeps_late_points_where_there_are_no_others() -> None:
    unasked = [DirectionCandidate(position=-1, point=p, d_prime=p, auroc=0.5) for p in range(1, 11)]
    assert select(unasked, SelectionConfig(), N_LAYERS).chosen.point == 8
    assert select(unasked[8:], SelectionConfig(), N_LAYERS).chosen.point == 10
    twice = [*unasked, DirectionCandidate(position=-2, point=3, d_prime=99, auroc=0.5)]
    assert select(twice, SelectionConfig(), N_LAYERS).chosen == twice[-1]


def test_the_pre_screen_keeps_the_share_of_largest_auroc() -> None:
    table = [replace(one(p), auroc=p / 10) for p in range(1, 10)]
    left = prescreened(table, SelectionConfig(rule="arditi", keep=0.3), N_LAYERS)
    assert [scored.point for scored in left] == [5, 6, 7]  # of points 1 to 7
    assert len(prescreened(table, ARDITI, N_LAYERS)) == 7


def test_a_selection_survives_its_file() -> None:
    found = select([one(2), one(2, bypass=-1, position=-2), one(3, kl=5), one(9)], ARDITI, N_LAYERS)
    assert found.chosen.position == -2
    assert Selection.from_json(json.loads(json.dumps(found.to_json()))) == found
