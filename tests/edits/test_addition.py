"""Beyond ablation: what is added to the stream, norms that are kept, and how much a direction overlaps another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.architecture.layers import decoder_layers
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.attribution.subject import make_subject
from iconoclast_tl.directions.estimators.differences import mean_difference
from iconoclast_tl.edits.addition import Addition, make_addition, mean_gap, overlap, require_apart, with_addition
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.edit import Edit, make_edit
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.hooks import hooked, preview
from iconoclast_tl.edits.store import load_edit, save_edit
from iconoclast_tl.edits.updates import edit_updates, stack_updates
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from tests.edits.edits import random_edit, scaled
from tests.reference.edits import steered_write

IDS = torch.arange(4, 16).reshape(2, 6)


def unit(seed: int = 9, d_model: int = 24) -> Tensor:
    return normalize(torch.randn(d_model, generator=torch.Generator().manual_seed(seed)), dim=0)


def logits(model: Model, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.hf(ids).logits
    return found


def under(edit: Edit, model: Model) -> Tensor:
    with preview(edit, hf_sites(model.hf)):
        return logits(model)


def stream(edit: Edit, model: Model) -> list[Tensor]:
    """What every layer is given under the preview, all hooks' changes in it, and what the last one passes on."""
    found: list[Tensor] = []
    layers = decoder_layers(model.hf)
    with preview(edit, hf_sites(model.hf)):
        handles = [layer.register_forward_pre_hook(lambda module, args: found.append(args[0])) for layer in layers]
        handles.append(layers[-1].register_forward_hook(lambda module, args, output: found.append(output)))
        logits(model)
    for handle in handles:
        handle.remove()
    return found


def written(edit: Edit, model: Model, site: Site) -> tuple[Tensor, Tensor]:
    """What a site's module writes under the preview, before and after the edit."""
    found: list[Tensor] = []
    module = hf_sites(model.hf)[site].module
    handles = [module.register_forward_hook(lambda m, a, y: found.append(y.clone()))]
    with preview(edit, hf_sites(model.hf)):
        handles.append(module.register_forward_hook(lambda m, a, y: found.append(y.clone())))
        logits(model)
    for handle in handles:
        handle.remove()
    return found[0], found[1]


@pytest.mark.parametrize("point", [0, 1, 2])
@pytest.mark.parametrize("coefficient", [3.0, -0.5])
def test_it_is_added_at_every_position_of_one_point(llama: Model, point: int, coefficient: float) -> None:
    base = stream(random_edit_of_nothing(), llama)
    found = stream(make_addition(Addition(unit(), point, coefficient), 3), llama)
    assert all(torch.equal(found[earlier], base[earlier]) for earlier in range(point))
    assert torch.allclose(found[point], base[point] + coefficient * unit(), atol=1e-6)
    assert not torch.allclose(found[point + 1], base[point + 1] + coefficient * unit(), atol=1e-3)  # layers read it


def random_edit_of_nothing() -> Edit:
    return scaled(random_edit(), 0)


def test_a_coefficient_of_zero_is_the_identity_to_the_bit(llama: Model) -> None:
    nothing = make_addition(Addition(unit(), 1, 0.0), 3)
    assert not nothing.sites
    assert torch.equal(under(nothing, llama), logits(llama))
    something = make_addition(Addition(unit(), 1, 1e-2), 3)
    assert something.sites == [Site(1, "resid_pre")]
    assert not torch.equal(under(something, llama), logits(llama))


def test_additions_add_up_and_beside_an_ablation_nothing_else_changes(llama: Model) -> None:
    twice = make_addition(Addition(unit(), 1, 2.0), 3)
    both = with_addition(make_addition(Addition(unit(), 1, 1.5), 3), Addition(unit(), 1, 0.5))
    assert torch.allclose(under(both, llama), under(twice, llama), atol=1e-5)
    beside = with_addition(random_edit(affine=True), Addition(unit(), 1, 2.0))
    assert set(beside.sites) == {*random_edit().sites, Site(1, "resid_pre")}
    for other in (random_edit(affine=True), twice):
        assert not torch.allclose(under(beside, llama), under(other, llama), atol=1e-2)


@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize(("k", "affine"), [(1, False), (3, True)])
def test_every_site_writes_what_the_reference_loop_says(llama: Model, k: int, affine: bool, keep_norm: bool) -> None:
    shifts = {"mlp_out": torch.randn(3, 24, generator=torch.Generator().manual_seed(4))}
    edit = replace(random_edit(k=k, affine=affine), shifts=shifts, keep_norm=keep_norm)
    assert Site(1, "mlp_out") in edit.sites  # nothing is ablated there
    for site in edit.sites:
        at, (before, after) = edit.at(site), written(edit, llama, site)
        shift = shifts["mlp_out"][site.layer] if site.component == "mlp_out" else torch.zeros(24)
        expected = steered_write(before, at.directions, at.strengths, at.centres, keep_norm, shift)
        assert torch.allclose(after, expected, atol=1e-5), site
        other = steered_write(before, at.directions, at.strengths, at.centres, not keep_norm, shift)
        assert not len(at.directions) or not torch.allclose(after, other, atol=1e-3), site


def test_kept_norms_are_kept_and_nothing_more_is_taken_out(llama: Model) -> None:
    ones = {name: torch.ones_like(values) for name, values in random_edit().strengths.items()}
    plain = replace(random_edit(), strengths=ones)
    for site in plain.sites[:2]:
        v = plain.at(site).directions[0]
        before, after = written(replace(plain, keep_norm=True), llama, site)
        _, shorter = (
            written(plain, llama, site) if site == plain.sites[0] else (None, before - (before @ v)[..., None] * v)
        )
        assert torch.allclose(after.norm(dim=-1), before.norm(dim=-1), rtol=1e-5)
        assert float((after @ v).abs().max()) < 1e-5
        assert float(cosine_similarity(after, shorter, dim=-1).min()) > 1 - 1e-5
        assert not torch.allclose(shorter.norm(dim=-1), before.norm(dim=-1), rtol=1e-3)
        assert float((before @ v).abs().max()) > 1e-2


def test_where_nothing_is_left_there_is_no_norm_to_keep() -> None:
    from iconoclast_tl.edits.updates import SiteUpdate, apply_update

    v = torch.eye(1, 24)
    update = SiteUpdate(reads=v[None], writes=v[None], constants=None, keep_norm=torch.tensor([True]))
    y = torch.stack([3 * v[0], v[0] + torch.eye(24)[1]])
    found = apply_update(y, None, update, torch.ones(1, 1))
    assert torch.equal(found[0], torch.zeros(24))
    assert torch.allclose(found[1], 2**0.5 * torch.eye(24)[1])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["none", "pre", "full"])
def test_a_batch_of_candidates_equals_separate_runs(biased: Model, kind: str) -> None:
    """With additions, other additions, none, kept norms, and other directions, in every order."""
    plain, two = random_edit(row_normalization=kind), random_edit(k=2, affine=True, row_normalization=kind, seed=3)
    edits = [
        with_addition(plain, Addition(unit(1), 1, 2.0)),
        make_addition(Addition(unit(2), 1, -3.0), 3),
        replace(two, shifts={"mlp_out": torch.randn(3, 24, generator=torch.Generator().manual_seed(4))}),
        scaled(plain, 0),
        replace(two, keep_norm=True) if kind == "none" else two,
        make_addition(Addition(unit(2), 2, 1.0), 3),
    ]
    sites, n = hf_sites(biased.hf), len(edits)
    separate = torch.stack([under(edit, biased) for edit in edits])
    for order in (list(range(n)), list(reversed(range(n)))):
        with hooked(stack_updates([edit_updates(edits[i], sites) for i in order]), sites) as rows:
            rows.candidates = torch.arange(n).repeat_interleave(2)
            together = logits(biased, IDS.repeat(n, 1)).reshape(n, 2, 6, -1)
        assert torch.allclose(together, separate[order], atol=3e-5)
    assert not torch.allclose(separate[0], separate[5], atol=1e-2)
    assert torch.equal(separate[3], logits(biased))


@pytest.mark.parametrize("keep_norm", [False, True])
def test_single_heads_take_an_addition_and_keep_norms(llama: Model, keep_norm: bool) -> None:
    site = Site(0, "attn_out")  # before any other edit
    heads = {"attn_out": torch.tensor([[1.0, 0.0, 0.5, 0.0]]).expand(3, -1)}
    plain = replace(random_edit(), parts=heads)
    changed = replace(plain, shifts={"attn_out": unit().expand(3, -1)}, keep_norm=keep_norm)
    before, left = written(plain, llama, site)
    _, found = written(changed, llama, site)
    scale = before.norm(dim=-1, keepdim=True) / left.norm(dim=-1, keepdim=True) if keep_norm else 1.0
    assert torch.allclose(found, scale * left + unit(), atol=1e-5)
    assert not torch.allclose(found, left, atol=1e-3)


@pytest.mark.parametrize("scope", ["writers", "stream"])
def test_what_is_added_stays_but_for_what_the_stream_is_projected_of(llama: Model, scope: str) -> None:
    """An ablated direction u at λ = 1, and v added at point 1 with cos(u, v) of 0.6."""
    u, rest = unit(1), unit(2)
    v = 0.6 * u + 0.8 * normalize(rest - (rest @ u) * u, dim=0)
    ones = {name: torch.ones(3) for name in ("attn_out", "mlp_out")}
    ablation = make_edit(u.expand(1, 3, -1), ones, EditConfig(scope=scope))
    plain, added = stream(ablation, llama), stream(with_addition(ablation, Addition(v, 1, 5.0)), llama)
    assert torch.allclose(added[1] - plain[1], 5.0 * v.expand_as(added[1]), atol=1e-5)  # at its own point all of it
    kept = ((added[2] - plain[2]) @ u).abs()
    expected = 5.0 * 0.6 if scope == "writers" else 0.0
    assert torch.allclose(kept, torch.full_like(kept, expected), atol=1e-4)


def test_the_gap_makes_the_mean_direction_the_difference_of_means() -> None:
    generator = torch.Generator().manual_seed(0)
    target, neutral = torch.randn(9, 24, generator=generator) + 1, torch.randn(7, 24, generator=generator)
    v = normalize(mean_difference(target, neutral), dim=0)
    gap = mean_gap(v, target, neutral)
    assert torch.allclose(gap * v, target.double().mean(0) - neutral.double().mean(0))
    assert abs(mean_gap(unit().double(), target, neutral)) < gap


def test_the_overlap_is_that_with_what_is_ablated() -> None:
    edit = random_edit(k=2)
    v = normalize(0.6 * edit.directions[0, 1] + 0.8 * edit.directions[1, 1], dim=0)
    assert overlap(edit, v) == pytest.approx(1, abs=1e-5)
    first = replace(
        edit, strengths={name: values * torch.tensor([[1.0], [0]]) for name, values in edit.strengths.items()}
    )
    elsewhere = max(float((edit.directions[0, layer] @ v).abs()) for layer in (0, 2))
    assert overlap(first, v) == pytest.approx(max(0.6, elsewhere), abs=1e-5)
    assert overlap(make_addition(Addition(v, 1, 2.0), 3), v) == 0  # nothing is ablated
    require_apart(0.5, 0.5)
    with pytest.raises(UserError, match=r"overlap \|cos\| of 0.51; want at most 0.5; add another.*edit.max_overlap"):
        require_apart(0.51, 0.5)


def test_a_file_gives_back_the_same_edit(tmp_path: Path) -> None:
    plain = random_edit(k=2)
    edit = with_addition(replace(plain, keep_norm=True), Addition(unit(), 2, 1.5))
    save_edit(tmp_path, edit, {"previewed": "it"})
    found, _ = load_edit(tmp_path / "edit.safetensors", 3, 24)
    assert found.digest() == edit.digest()
    assert found.keep_norm
    digests = {one.digest() for one in (plain, edit, replace(edit, keep_norm=False), replace(edit, shifts={}))}
    assert len(digests) == 4


def test_attribution_takes_none_of_it_apart(llama: Model) -> None:
    sites = hf_sites(llama.hf)
    for edit, got in (
        (with_addition(random_edit(), Addition(unit(), 1, 2.0)), "an addition at 1.resid_pre"),
        (replace(random_edit(), keep_norm=True), "edit.keep_norm"),
    ):
        with pytest.raises(UserError, match=f"does not fall into parts: got {got}"):
            make_subject(edit, Ground(sites=sites), llama)
    assert make_subject(random_edit(), Ground(sites=sites), llama).parts


def test_what_cannot_be_is_told() -> None:
    for point in (-1, 3):
        with pytest.raises(UserError, match="nothing can be added at residual point"):
            make_addition(Addition(unit(), point, 1.0), 3)
    with pytest.raises(UserError, match="norms are kept of what is written, or of the weights"):
        replace(random_edit(row_normalization="pre"), keep_norm=True)
    with pytest.raises(ValueError, match="shifts of mlp_out"):
        replace(random_edit(), shifts={"mlp_out": torch.full((3, 24), float("nan"))})
