"""The kernel space: ranges in layers, and the edit that choices mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from iconoclast_tl.architecture.sites import Component
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.geometry import orthonormalize
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.search.space import KernelSpace, build_edit, spec_of, suggest
from iconoclast_tl.search.spec import EditSpec, LayerStrengths


class Bounds:
    """A trial that answers with one end of every range and remembers the range."""

    def __init__(self, end: int) -> None:
        self.end, self.asked = end, {}

    def suggest_float(self, name: str, low: float, high: float) -> float:
        self.asked[name] = (low, high)
        return (low, high)[self.end]

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return choices[self.end]


def test_heretics_ranges_in_layers() -> None:
    trial = Bounds(0)
    suggest(trial, KernelSpace(), n_layers=11)
    assert trial.asked["direction_point"] == pytest.approx((5, 10))
    assert trial.asked["attn_out.max_weight_position"] == pytest.approx((6, 10))
    assert trial.asked["mlp_out.min_weight_distance"] == pytest.approx((1, 6))
    assert trial.asked["mlp_out.max_weight"] == (0.8, 1.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_weight": (1.5, 0.8)},
        {"points": (0.0, 1.9)},
        {"max_weight_position": (-0.1, 0.5)},
        {"direction_scopes": ()},
    ],
)
def test_ranges_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        KernelSpace(**wrong)


@pytest.mark.parametrize("end", [0, 1])
def test_the_edit_of_choices(end: int) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    directions = Directions.single(vectors, torch.zeros(5, dtype=torch.float64))
    spec = spec_of(suggest(Bounds(end), KernelSpace(), n_layers=4), EditConfig())
    edit = build_edit(spec, directions, EditConfig())
    if end == 0:  # global, point 1 + 0.4 · 3 = 2.2
        expected = torch.nn.functional.normalize(0.8 * vectors[2] + 0.2 * vectors[3], dim=0)
        assert torch.allclose(edit.directions[0], expected.expand(4, -1), atol=1e-6)
        # peak 0.8 at 1.8, floor 0 at one layer's distance
        assert torch.allclose(edit.strengths["attn_out"][0], torch.tensor([0, 0.8 * 0.2, 0.8 * 0.8, 0]), atol=1e-6)
    else:  # each layer's own, the stream after it; peak and floor are the same
        assert torch.allclose(edit.directions[0], vectors[1:])
        assert torch.allclose(edit.strengths["mlp_out"][0], torch.tensor([0, 0, 1.5, 1.5]), atol=1e-6)


@pytest.mark.parametrize("point", [2.25, None])
def test_every_direction_of_a_point_gets_its_weight_of_the_strength(point: float | None) -> None:
    vectors = orthonormalize(torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)))
    weights = torch.stack([torch.ones(5), torch.tensor([0.1, 0.2, 0.4, 0.8, 0.6])])
    directions = Directions(vectors, torch.zeros(5, dtype=torch.float64), weights)
    strengths: dict[Component, LayerStrengths] = {"attn_out": (0.5, 1.0, 0.0, 2.0), "mlp_out": (1.0, 1.0, 1.0, 1.0)}
    spec = EditSpec(point=point, affine=False, strengths=strengths)
    edit = build_edit(spec, directions, EditConfig())
    second = [0.5, 0.5, 0.5, 0.5] if point is not None else [0.2, 0.4, 0.8, 0.6]  # ¾ of 0.4 and ¼ of 0.8
    for name, own in strengths.items():
        assert edit.strengths[name][0].tolist() == list(own)
        assert torch.allclose(edit.strengths[name][1], torch.tensor(own) * torch.tensor(second))
    at = vectors[:, 1:] if point is None else directions.span(2.25)[:, None].expand(-1, 4, -1)
    assert torch.allclose(edit.directions, orthonormalize(at), atol=1e-6)
