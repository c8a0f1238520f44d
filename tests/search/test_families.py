"""Families: which compete, what their specs mean, and many of them with strengths of their own in one batch."""

from __future__ import annotations

import pytest
import torch

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.architecture.sites import WRITERS, Component
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.hooks import hooked, preview
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import left_pad
from iconoclast_tl.search.families import Family, Source, families, points_in, stack_families, with_strengths
from iconoclast_tl.search.presets import PRESETS
from iconoclast_tl.search.space import KernelSpace, point_range


def random_directions(seed: int, *without: int) -> Directions:
    vectors = torch.randn(4, 24, generator=torch.Generator().manual_seed(seed))
    vectors[list(without)] = 0
    return Directions.single(torch.nn.functional.normalize(vectors, dim=-1), torch.ones(4))


def make_source(*without: int) -> Source:
    """Two kinds of directions for a model of three layers, without those at some residual points."""
    generator = torch.Generator().manual_seed(9)
    writes: dict[Component, torch.Tensor] = {name: torch.randn(3, 24, generator=generator) for name in WRITERS}
    directions = {"as set": random_directions(0, *without), "unfiltered": random_directions(1, *without)}
    return Source(directions, EditConfig(), Ground(neutral_writes=writes))


def points(found: list[Family]) -> list[float]:
    mine = [family.spec for family in found if family.spec.directions == "as set"]
    return [spec.point for spec in mine if spec.point is not None]


@torch.no_grad()
def test_families_in_one_batch_are_the_edits_that_their_specs_mean(llama: Model, rows: list[list[int]]) -> None:
    source, sites = make_source(), hf_sites(llama.hf)
    chosen = families(source, KernelSpace(points=(0, 1)), (False, True), sites)
    strengths = torch.rand(len(chosen), 2, 3, generator=torch.Generator().manual_seed(3)) + 0.5
    inputs = llama.inputs(left_pad(rows[:2], llama.pad_id))
    base, seen = llama.hf(**inputs).logits[:, -1], []
    for family, own in zip(chosen, strengths, strict=True):
        edit = source.build(with_strengths(family, own))
        assert edit.is_affine == family.spec.affine
        vectors, at = source.directions[family.spec.directions].main, family.spec.point
        expected = vectors[1:] if at is None else vectors[int(at)].expand(3, -1)
        assert torch.allclose(edit.directions[0], expected, atol=1e-6)
        assert [edit.strengths[name][0].tolist() for name in WRITERS] == own.tolist()
        with preview(edit, sites):
            seen.append(llama.hf(**inputs).logits[:, -1])
    repeated = {name: tensor.repeat(len(chosen), 1) for name, tensor in inputs.items()}
    with hooked(stack_families(chosen, strengths), sites) as assigned:
        assigned.candidates = torch.arange(len(chosen)).repeat_interleave(2)
        together = llama.hf(**repeated).logits[:, -1].reshape(len(chosen), 2, -1)
    assert torch.allclose(together, torch.stack(seen), atol=1e-4)
    assert all(not torch.allclose(one, other, atol=1e-2) for i, one in enumerate(seen) for other in [base, *seen[:i]])


def test_gradients_reach_every_strength(llama: Model, rows: list[list[int]]) -> None:
    sites = hf_sites(llama.hf)
    chosen = families(make_source(), KernelSpace(), (True,), sites)[:2]
    strengths = torch.full((2, 2, 3), 0.5, requires_grad=True)
    with hooked(stack_families(chosen, strengths), sites) as assigned:
        assigned.candidates = torch.arange(2)
        llama.hf(torch.tensor([rows[0], rows[0]])).logits[:, -1, 5].sum().backward()
    assert strengths.grad is not None
    assert bool((strengths.grad != 0).all())


def test_points_in_the_range_compete_both_ends_included(llama: Model) -> None:
    def found(low: float, high: float) -> list[float]:
        space = KernelSpace(points=(low, high), direction_scopes=("global",))
        return points(families(make_source(), space, (False,), hf_sites(llama.hf)))

    assert found(0, 1) == [1, 2, 3]
    assert found(0.5, 1) == [2, 3]
    assert found(0.1, 0.6) == [2]
    assert found(0.6, 0.9) == [3]  # no point within: the nearest to its middle


def test_a_point_without_a_direction_gives_no_family(llama: Model) -> None:
    sites, everywhere = hf_sites(llama.hf), KernelSpace(points=(0, 1))
    assert points(families(make_source(0, 2), everywhere, (False,), sites)) == [1, 3]  # point 0 is the embedding
    assert points(families(make_source(3), everywhere, (False,), sites)) == [1, 2]
    with pytest.raises(UserError, match="no residual point in the range has a direction"):
        families(make_source(1, 2, 3), everywhere, (False,), sites)


def test_families_are_those_of_the_scopes_kinds_and_directions_allowed(llama: Model) -> None:
    sites = hf_sites(llama.hf)

    def named(space: KernelSpace, affine: tuple[bool, ...]) -> list[str]:
        return [str(family) for family in families(make_source(), space, affine, sites)]

    own = KernelSpace(direction_scopes=("per layer",))
    assert named(own, (True,)) == ["affine, each layer's own, as set", "affine, each layer's own, unfiltered"]
    last = KernelSpace(direction_scopes=("global",), points=(1, 1))
    both = [f"{kind}, point 3, {name}" for name in ("as set", "unfiltered") for kind in ("plain", "affine")]
    assert named(last, (False, True)) == both
    assert len(named(KernelSpace(points=(0, 1)), (False, True))) == 2 * (3 + 1) * 2


@pytest.mark.parametrize("shares", [(0.4, 0.9), (0.0, 1.0), (0.5, 0.5), (0.35, 0.65)])
def test_points_are_those_of_heretics_index_and_one(shares: tuple[float, float]) -> None:
    """Its index i, from shares of L−1, is the stream after layer i: residual point i+1."""
    space, (low, high) = KernelSpace(points=shares, direction_scopes=("global",)), shares
    for n_layers in range(1, 130):
        last = n_layers - 1
        within = [i for i in range(n_layers) if low * last <= i <= high * last] or [round((low + high) / 2 * last)]
        directions = Directions.single(torch.eye(n_layers + 1), torch.ones(n_layers + 1))
        assert points_in(directions, space) == [i + 1 for i in within]
        assert point_range(space, n_layers) == pytest.approx((low * last + 1, high * last + 1))


def test_heretics_preset_is_its_own_range_of_indices() -> None:
    space = KernelSpace.model_validate(PRESETS["heretic"]["search"]["space"])
    assert point_range(space, 11) == pytest.approx((4 + 1, 9 + 1))
    assert space == KernelSpace()
