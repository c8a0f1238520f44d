"""Sets of directions by name: estimated by their own settings, at the position of those that are set, when asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from iconoclast_tl.activations.store import Activations, Residuals
from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.estimate import estimate_directions
from iconoclast_tl.directions.separation import separation
from iconoclast_tl.directions.sets import AS_SET, DirectionSets

GENERATOR = torch.Generator().manual_seed(0)
SHOWN = torch.arange(40) % 20 < 13
"""On neither side what set a prompt is of."""


def some_residuals() -> Residuals:
    rows = [torch.randn(n, 3, 8, generator=GENERATOR) for n in (20, 20, 6, 6)]
    rows[0][..., 0] += 2
    for number, here in enumerate((rows[0], rows[1])):
        here[..., 3] += 6 * SHOWN[20 * number : 20 * number + 20, None]
    return Residuals(*rows)


@pytest.mark.parametrize("position", [-1, -2])
def test_other_sets_are_estimated_where_those_that_are_set_are_from(position: int) -> None:
    last, earlier = some_residuals(), some_residuals()
    activations = Activations(**vars(last), neutral_writes={}, earlier={-2: earlier})
    about = {"selection": {"position": position, "point": 2}}
    as_set = Directions.single(torch.eye(8)[:3], torch.ones(3), about)
    others = {
        name: DirectionConfig(estimator=name, components=2, contrast=0.1) for name in ("contrastive-pca", "probe")
    }
    sets = DirectionSets(as_set, activations, others, SHOWN)
    assert list(sets) == [AS_SET, *others]
    assert sets[AS_SET] is as_set
    there = activations.at(position)
    for name, config in others.items():
        wanted = estimate_directions(there.target_train, there.neutral_train, config, SHOWN)
        assert wanted.fallbacks == (None, None, None)
        assert torch.equal(sets[name].vectors, wanted.vectors)
        assert torch.equal(sets[name].weights, wanted.weights)
        assert (sets[name].position, sets[name].chosen) == (position, None)  # the choice was among the others
        apart = separation(wanted.vectors[0], there.target_val, there.neutral_val)
        assert torch.equal(sets[name].separation, apart)
        assert sets[name] is sets[name]
    elsewhere = DirectionSets(replace(as_set, provenance={}), activations, others, SHOWN)["probe"]
    assert torch.equal(elsewhere.vectors, sets["probe"].vectors) == (position == -1)
