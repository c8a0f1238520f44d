"""The Edit value: what it accepts, which sites it touches, how it is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.edit import Edit, make_edit
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.profiles import Kernel, uniform
from iconoclast_tl.edits.store import load_edit, save_edit
from iconoclast_tl.foundation.errors import UserError
from tests.edits.edits import random_edit, scaled


def test_sites_with_strength_zero_or_without_a_direction_are_not_touched() -> None:
    edit = random_edit()
    assert Site(1, "mlp_out") not in edit.sites
    assert len(edit.sites) == 5
    vectors = edit.directions.clone()
    vectors[:, 0] = 0
    assert all(site.layer != 0 for site in replace(edit, directions=vectors).sites)


def test_directions_that_are_not_orthonormal_are_refused() -> None:
    edit = random_edit(k=2)
    with pytest.raises(ValueError, match="not orthonormal"):
        replace(edit, directions=edit.directions * 1.01)
    oblique = edit.directions.clone()
    oblique[1] = oblique[0]
    with pytest.raises(ValueError, match="not orthonormal"):
        replace(edit, directions=oblique)
    with pytest.raises(ValueError, match="not finite"):
        scaled(edit, float("nan"))


def test_the_scope_follows_from_the_strengths() -> None:
    assert random_edit().scope == "writers"
    assert random_edit(stream=True).scope == "stream"
    with pytest.raises(UserError, match="row normalisation acts on weights"):
        replace(random_edit(stream=True), row_normalization="pre")


def test_making_an_affine_edit_takes_the_neutral_mean_along_the_direction() -> None:
    vectors = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    means = {name: torch.randn(3, 5, dtype=torch.float64) for name in ("attn_out", "mlp_out")}
    strengths = {"attn_out": uniform(1, [0, 2], 3), "mlp_out": uniform(0.5, [1], 3)}
    edit = make_edit(vectors, strengths, EditConfig(affine=True), Ground(neutral_writes=means))
    for k in range(2):
        for layer in range(3):
            expected = float(edit.directions[k, layer].double() @ means["mlp_out"][layer])
            assert float(edit.centres["mlp_out"][k, layer]) == pytest.approx(expected, abs=1e-6)
    assert not make_edit(vectors, strengths, EditConfig(), Ground(neutral_writes=means)).is_affine
    known = {"attn_out": means["attn_out"]}  # what is left alone needs no mean
    assert make_edit(
        vectors, strengths, EditConfig(affine=True, attention_only=True), Ground(neutral_writes=known)
    ).is_affine
    with pytest.raises(UserError, match="neutral mean of resid_pre"):
        make_edit(vectors, strengths, EditConfig(affine=True, scope="stream"), Ground(neutral_writes=means))


def test_a_file_gives_back_the_same_edit(tmp_path: Path) -> None:
    edit = random_edit(k=2, affine=True, row_normalization="pre")
    save_edit(tmp_path, edit, {"trial": 3})
    found, provenance = load_edit(tmp_path / "edit.safetensors", 3, 24)
    assert found.digest() == edit.digest() != random_edit(k=2, affine=True).digest()
    assert provenance == {"trial": 3}
    assert json.loads((tmp_path / "edit.json").read_text())["digest"] == edit.digest()
    with pytest.raises(UserError, match="another model"):
        load_edit(tmp_path / "edit.safetensors", 4, 24)


def test_the_kernel_by_hand() -> None:
    kernel = Kernel(max_weight=1.2, max_weight_position=2.5, min_weight=0.2, min_weight_distance=2.0)
    # distances 2.5 1.5 0.5 0.5 1.5 2.5; slope −0.5 a layer
    assert torch.allclose(kernel.strengths(6), torch.tensor([0.0, 0.45, 0.95, 0.95, 0.45, 0.0]))
    edge = Kernel(1.0, 0.0, 0.4, 2.0).strengths(4)
    assert torch.allclose(edge, torch.tensor([1.0, 0.7, 0.4, 0.0]))  # the floor belongs to the kernel, beyond is 0


def test_a_scaled_edit_by_zero_touches_nothing() -> None:
    edit = random_edit()
    assert not scaled(edit, 0).sites
    assert isinstance(scaled(edit, 0), Edit)
