"""`estimate`, the plain verb: directions from activations, and one line for whatever does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from iconoclast_tl.activations.store import Activations, Residuals
from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.estimate import estimate, estimate_directions
from iconoclast_tl.directions.separation import separation
from iconoclast_tl.foundation.errors import UserError

GENERATOR = torch.Generator().manual_seed(3)


def some(gap: float = 2.0, n: int = 20, points: int = 4) -> Residuals:
    """Target and neutral prompts, `gap` apart at every point after the first, most at the third."""
    rows = [torch.randn(size, points, 8, generator=GENERATOR) for size in (n, n, 12, 12)]
    for target, neutral in ((rows[0], rows[1]), (rows[2], rows[3])):
        target[:, 1:, 0] += gap
        target[:, 2:3, 0] += gap
        target[:, 0] = neutral[:, 0] = torch.ones(8)
    return Residuals(*rows)


def activations(**changes: Any) -> Activations:
    last = some()
    found = Activations(**vars(last), neutral_writes={}, earlier={-2: some()}, fingerprint="abc")
    return replace(found, **changes)


ACTS = activations()


@pytest.mark.parametrize("position", [-1, -2])
def test_directions_are_those_of_the_train_prompts_with_their_separation_on_val(position: int) -> None:
    directions = estimate(ACTS, "lda", orthogonalize=True, benign_rank=1, position=position)
    there = ACTS.at(position)
    config = DirectionConfig(estimator="lda", orthogonalize=True, benign_rank=1)
    wanted = estimate_directions(there.target_train, there.neutral_train, config)
    assert torch.equal(directions.vectors, wanted.vectors)
    apart = separation(wanted.vectors[0], there.target_val, there.neutral_val)
    assert torch.equal(directions.separation, apart)
    assert directions.position == position
    assert not torch.equal(estimate(ACTS).vectors, directions.vectors)  # the negative control


def test_what_is_said_of_them() -> None:
    directions = estimate(ACTS, orthogonalize=True)
    assert directions.provenance["fingerprint"] == "abc"
    assert directions.provenance["directions"]["orthogonalize"] is True
    assert directions.best == 2
    assert torch.equal(directions.at(), directions.at(2))
    d = float(directions.separation[2])
    assert repr(directions) == f"Directions(mean, orthogonalized, 4 points, d_model 8, best: point 2 with d′ {d:.2f})"
    assert "up to 3 a point" in repr(estimate(ACTS, "contrastive-pca", components=3, contrast=0.1))


def test_a_probe_goes_by_labels_and_says_where_it_fell_back() -> None:
    shows = [i % 20 < 13 for i in range(40)]
    lines: list[str] = []
    probe = estimate(ACTS, "probe", labels=shows, fallback="median", say=lines.append)
    assert lines == probe.provenance["notes"]
    assert any("probe fell back to median" in line for line in lines)
    assert torch.equal(estimate(ACTS, "probe", labels=torch.tensor(shows), fallback="median").vectors, probe.vectors)


BAD: dict[str, tuple[Activations, dict[str, Any], str]] = {
    "estimator": (ACTS, {"estimator": "magic"}, r"there is no estimator 'magic' \(estimator\): want one of cones, "),
    "setting": (ACTS, {"magic": 1}, "unknown setting magic: want one of estimator, "),
    "value": (ACTS, {"benign_rank": -1}, "the setting benign_rank does not fit: got -1"),
    "idle": (ACTS, {"refine": 1}, "no setting of an estimate: refine: want one of estimator, hybrid"),
    "labels": (ACTS, {"estimator": "probe"}, "goes by what the model did: got no labels; want labels=40 truth"),
    "few labels": (ACTS, {"estimator": "probe", "labels": [True]}, r"not those of the train prompts: got \(1,\)"),
    "numbers": (ACTS, {"labels": torch.ones(40)}, "not those of the train prompts: got .* of torch.float32"),
    "few": (activations(**vars(some(n=2))), {"estimator": "cones"}, "needs more prompts: got 2 target"),
    "fallback": (activations(**vars(some(n=0))), {}, "the estimator mean needs more prompts: got 0 target"),
    "position": (ACTS, {"position": -3}, "residuals at position -3 were not collected: want one of -1, -2"),
    "points": (activations(**vars(some(points=1))), {}, "of no model: got 1 residual points"),
    "no points": (
        activations(**{name: rows[:, :0] for name, rows in vars(some()).items()}), {}, "of no model: got 0 residual"
    ),
    "no val": (activations(target_val=torch.zeros(0, 4, 8)), {}, "no val prompts to separate: got 0 target and 12"),
    "same": (replace(ACTS, target_train=ACTS.neutral_train), {}, "hold the same activations everywhere"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line(name: str) -> None:
    acts, given, told = BAD[name]
    with pytest.raises(UserError, match=told) as error:
        estimate(acts, **given)
    assert "\n" not in str(error.value)
