"""Calibrated strengths: the formula against numpy, and the same edit in every search and preview."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.architecture.sites import Component
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.geometry import normalize
from iconoclast_tl.edits.calibration import calibration_factors, projections
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.edit import make_edit
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.hooks import hooked, preview
from iconoclast_tl.edits.profiles import uniform
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.search.families import Source, family, stack_families, with_strengths
from iconoclast_tl.search.spec import EditSpec

GENERATOR = torch.Generator().manual_seed(0)
VECTORS = normalize(torch.randn(2, 3, 24, generator=GENERATOR))
SPREAD = torch.tensor([0.0, 0.1, 1.0, 3.0])
TARGET = torch.randn(15, 4, 24, generator=GENERATOR) * SPREAD[:, None] + VECTORS[0, [0, 0, 1, 2]]
"""Of every point: along the first direction 1 with a spread that grows from layer to layer."""
NEUTRAL = 0.1 * torch.randn(4, 24, generator=GENERATOR)
GROUND = Ground(target_residuals=TARGET, neutral_residual=NEUTRAL)


def by_hand(component: Component, share: float) -> np.ndarray:
    """For every direction and layer by itself."""
    found = np.ones((2, 3))
    for k in range(2):
        for layer in range(3):
            point = layer if component == "resid_pre" else layer + 1
            residuals = TARGET[:, point].double().numpy() - NEUTRAL[point].double().numpy()
            p = residuals @ VECTORS[k, layer].double().numpy()
            if p.mean() > 0:
                found[k, layer] = np.clip(np.quantile(p, share) / p.mean(), 0.5, 2)
    return found


@pytest.mark.parametrize("component", ["attn_out", "mlp_out", "resid_pre"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_factors_are_those_of_numpy(component: Component, share: float) -> None:
    found = GROUND.factors(component, VECTORS, share)
    assert np.allclose(found.numpy(), by_hand(component, share), atol=1e-6)
    other = "resid_pre" if component != "resid_pre" else "mlp_out"
    assert not np.allclose(found.numpy(), by_hand(other, share), atol=1e-3)


def test_factors_are_one_where_all_prompts_are_alike_or_none_is_a_target() -> None:
    alike = torch.full((5, 1, 1), 2.0, dtype=torch.float64)
    spread = torch.tensor([0.0, 1.0, 2.0, 3.0, 14.0], dtype=torch.float64)[:, None, None]  # mean 4
    for share in (0.01, 0.5, 0.99):
        assert float(calibration_factors(alike, share)) == 1
        assert float(calibration_factors(-spread, share)) == 1
        assert float(calibration_factors(0 * alike, share)) == 1
    found = [float(calibration_factors(spread, share)) for share in (0.5, 0.75, 0.99)]
    assert found == [0.5, 0.75, 2.0]  # 2 / 4, 3 / 4, and 13.56 / 4 cut off


def test_strengths_are_scaled_layer_by_layer_and_direction_by_direction() -> None:
    strengths = {"attn_out": uniform(1, [0, 1, 2], 3), "mlp_out": uniform(-0.5, [1], 3)}
    plain = make_edit(VECTORS, strengths, EditConfig(), GROUND)
    edit = make_edit(VECTORS, strengths, EditConfig(calibrate=0.9), GROUND)
    factors = GROUND.factors("mlp_out", edit.directions, 0.9)
    for name, values in edit.strengths.items():
        assert torch.allclose(values, plain.strengths[name] * factors)
    assert float(factors.max() - factors.min()) > 0.2
    assert edit.sites == plain.sites  # what has no strength gets none
    with pytest.raises(UserError, match="need residuals of the target prompts"):
        make_edit(VECTORS, strengths, EditConfig(calibrate=0.9))


@torch.no_grad()
def test_a_search_tries_the_edit_that_it_keeps(llama: Model) -> None:
    """Strengths through a family's updates, as a gradient moves them, and the edit built of the same spec."""
    sites, ids = hf_sites(llama.hf), torch.arange(4, 16).reshape(2, 6)
    points = torch.cat([VECTORS[0, :1], VECTORS[0]])
    source = Source({"as set": Directions.single(points, torch.ones(4))}, EditConfig(calibrate=0.9), GROUND)
    one = family(source, EditSpec(point=None, affine=False), sites)
    strengths = torch.tensor([[[0.7, 0.2, 1.1], [0.4, 0.9, 0.3]]])
    with hooked(stack_families([one], strengths), sites):
        tried = llama.hf(ids).logits
    built = source.build(with_strengths(one, strengths[0]))
    with preview(built, sites):
        assert torch.allclose(llama.hf(ids).logits, tried, atol=1e-5)
    uncalibrated = replace(source, edit=EditConfig()).build(with_strengths(one, strengths[0]))
    with preview(uncalibrated, sites):
        assert not torch.allclose(llama.hf(ids).logits, tried, atol=1e-3)


def test_projections_are_of_what_lies_beyond_the_neutral_mean() -> None:
    found = projections(VECTORS, TARGET[:, 1:], NEUTRAL[1:])
    assert found.dtype == torch.float64
    expected = float((TARGET[4, 3] - NEUTRAL[3]).double() @ VECTORS[1, 2].double())
    assert float(found[4, 1, 2]) == pytest.approx(expected)
