"""Families: which compete, what their parameters mean, and many of them with strengths of their own in one batch."""

from __future__ import annotations

import pytest
import torch

from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.edit import EditConfig
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.hooks import hooked, preview
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.hook_points import hf_sites
from iconoclast_tl.models.loading import LoadedModel
from iconoclast_tl.models.sites import WRITERS, Component
from iconoclast_tl.prompts.chat import left_pad
from iconoclast_tl.search.families import Family, Source, families, stack_families, with_strengths
from iconoclast_tl.search.space import KernelSpace


def random_directions(seed: int, *without: int) -> Directions:
    vectors = torch.randn(4, 24, generator=torch.Generator().manual_seed(seed))
    vectors[list(without)] = 0
    return Directions.single(torch.nn.functional.normalize(vectors, dim=-1), torch.ones(4))


def make_source(*without: int) -> Source:
    """Two kinds of directions for a model of three layers, without those at some residual points."""
    generator = torch.Generator().manual_seed(9)
    writes: dict[Component, torch.Tensor] = {name: torch.randn(3, 24, generator=generator) for name in WRITERS}
    directions = {"as set": random_directions(0, *without), "unfiltered": random_directions(1, *without)}
    return Source(directions, EditConfig(), Ground(writes))


def indices(found: list[Family], scope: str = "global") -> list[float]:
    mine = [family.parameters for family in found if family.parameters["direction_scope"] == scope]
    return [one["direction_index"] for one in mine if one["directions"] == "as set"]


@torch.no_grad()
def test_families_in_one_batch_are_the_edits_that_their_parameters_mean(
    llama: LoadedModel, rows: list[list[int]]
) -> None:
    source, sites = make_source(), hf_sites(llama.hf)
    chosen = families(source, KernelSpace(direction_index=(0, 1)), (False, True), sites)
    strengths = torch.rand(len(chosen), 2, 3, generator=torch.Generator().manual_seed(3)) + 0.5
    inputs = llama.inputs(left_pad(rows[:2], llama.pad_id))
    base, seen = llama.hf(**inputs).logits[:, -1], []
    for family, own in zip(chosen, strengths, strict=True):
        edit = source.build(with_strengths(family, own))
        assert edit.is_affine == family.parameters["affine"]
        vectors = source.directions[family.parameters["directions"]].main
        at = family.parameters["direction_index"]
        per_layer = family.parameters["direction_scope"] == "per layer"
        expected = vectors[1:] if per_layer else vectors[int(at) + 1].expand(3, -1)
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


def test_gradients_reach_every_strength(llama: LoadedModel, rows: list[list[int]]) -> None:
    sites = hf_sites(llama.hf)
    chosen = families(make_source(), KernelSpace(), (True,), sites)[:2]
    strengths = torch.full((2, 2, 3), 0.5, requires_grad=True)
    with hooked(stack_families(chosen, strengths), sites) as assigned:
        assigned.candidates = torch.arange(2)
        llama.hf(torch.tensor([rows[0], rows[0]])).logits[:, -1, 5].sum().backward()
    assert strengths.grad is not None
    assert bool((strengths.grad != 0).all())


def test_points_in_the_range_compete_both_ends_included(llama: LoadedModel) -> None:
    def found(low: float, high: float) -> list[float]:
        space = KernelSpace(direction_index=(low, high), direction_scopes=("global",))
        return indices(families(make_source(), space, (False,), hf_sites(llama.hf)))

    assert found(0, 1) == [0, 1, 2]
    assert found(0.5, 1) == [1, 2]
    assert found(0.1, 0.6) == [1]
    assert found(0.6, 0.9) == [2]  # no point within: the nearest to its middle


def test_a_point_without_a_direction_gives_no_family(llama: LoadedModel) -> None:
    sites, everywhere = hf_sites(llama.hf), KernelSpace(direction_index=(0, 1))
    assert indices(families(make_source(0, 2), everywhere, (False,), sites)) == [0, 2]  # point 0 is the embedding
    assert indices(families(make_source(3), everywhere, (False,), sites)) == [0, 1]
    with pytest.raises(UserError, match="no residual point in the range has a direction"):
        families(make_source(1, 2, 3), everywhere, (False,), sites)


def test_families_are_those_of_the_scopes_kinds_and_directions_allowed(llama: LoadedModel) -> None:
    sites = hf_sites(llama.hf)

    def named(space: KernelSpace, affine: tuple[bool, ...]) -> list[str]:
        return [str(family) for family in families(make_source(), space, affine, sites)]

    own = KernelSpace(direction_scopes=("per layer",))
    assert named(own, (True,)) == ["affine, each layer's own, as set", "affine, each layer's own, unfiltered"]
    last = KernelSpace(direction_scopes=("global",), direction_index=(1, 1))
    both = [f"{kind}, point 3, {name}" for name in ("as set", "unfiltered") for kind in ("plain", "affine")]
    assert named(last, (False, True)) == both
    assert len(named(KernelSpace(direction_index=(0, 1)), (False, True))) == 2 * (3 + 1) * 2
