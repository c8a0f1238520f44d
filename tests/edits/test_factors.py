"""LoRA factors against weights edited by the literature's formulas, in float64."""

from __future__ import annotations

import pytest
import torch

from iconoclast_tl.architecture.writers import dense_weight
from iconoclast_tl.edits.edit import SiteEdit
from iconoclast_tl.edits.factors import along, factors
from iconoclast_tl.foundation.errors import UserError
from tests.reference.edits import best_of_rank, edited_weight

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(12, 20, generator=GENERATOR, dtype=torch.float64) * torch.linspace(0.2, 3, 12)[:, None]
V = torch.linalg.qr(torch.randn(12, 3, generator=GENERATOR, dtype=torch.float64)).Q.T


def site_edit(k: int = 1, strength: float = 0.8, centre: float = 0.0) -> SiteEdit:
    return SiteEdit(
        directions=V[:k].clone(),
        strengths=torch.full((k,), strength, dtype=torch.float64),
        centres=torch.full((k,), centre).double(),
    )


@pytest.mark.parametrize("row_normalization", ["none", "pre"])
@pytest.mark.parametrize("strength", [1.0, 0.3, -0.7])
def test_none_and_pre_are_exact_in_rank_one(row_normalization: str, strength: float) -> None:
    change = factors(site_edit(strength=strength), WEIGHT, None, row_normalization)
    assert change.rank == 1
    expected = edited_weight(WEIGHT, V[0], strength, row_normalization)
    assert torch.allclose(WEIGHT + change.b @ change.a, expected, atol=1e-12)
    other = edited_weight(WEIGHT, V[0], strength, "pre" if row_normalization == "none" else "none")
    assert not torch.allclose(expected, other, atol=1e-3)


def test_full_restores_row_norms_and_is_the_best_of_its_rank() -> None:
    expected = edited_weight(WEIGHT, V[0], 1.0, "full")
    whole = factors(site_edit(strength=1.0), WEIGHT, None, "full", rank=12)
    assert torch.allclose(WEIGHT + whole.b @ whole.a, expected, atol=1e-10)
    assert torch.allclose(expected.norm(dim=1), WEIGHT.norm(dim=1))
    assert not torch.allclose(edited_weight(WEIGHT, V[0], 1.0, "pre").norm(dim=1), WEIGHT.norm(dim=1), atol=1e-2)
    cut = factors(site_edit(strength=1.0), WEIGHT, None, "full", rank=3)
    assert cut.rank == 3
    assert torch.allclose(cut.b @ cut.a, best_of_rank(expected - WEIGHT, 3), atol=1e-10)


def test_full_of_a_large_matrix_is_the_same_every_time() -> None:
    large = torch.randn(1030, 1040, generator=GENERATOR)
    edit = SiteEdit(
        directions=torch.nn.functional.normalize(torch.randn(1, 1030), dim=1),
        strengths=torch.ones(1),
        centres=torch.zeros(1),
    )
    torch.manual_seed(5)
    first = factors(edit, large, None, "full")
    torch.manual_seed(6)
    state = torch.random.get_rng_state()
    second = factors(edit, large, None, "full")
    assert torch.equal(first.a, second.a)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's random numbers are left alone


def test_several_directions_add_their_ranks() -> None:
    change = factors(site_edit(k=3), WEIGHT, None)
    assert change.rank == 3
    one_by_one = WEIGHT
    for v in V:
        one_by_one = edited_weight(one_by_one, v, 0.8, "none")  # orthonormal: the order does not matter
    assert torch.allclose(WEIGHT + change.b @ change.a, one_by_one, atol=1e-12)


def test_the_bias_is_moved_towards_the_centre() -> None:
    bias = torch.randn(12, generator=GENERATOR, dtype=torch.float64)
    change = factors(site_edit(strength=1.0, centre=0.7), WEIGHT, bias)
    assert change.bias is not None
    assert float(V[0] @ (bias + change.bias)) == pytest.approx(0.7)
    assert factors(site_edit(), WEIGHT, None).bias is None
    affine = factors(site_edit(strength=0.5, centre=2.0), WEIGHT, None)
    assert affine.bias is not None
    assert torch.allclose(affine.bias, 0.5 * 2.0 * V[0])


def test_what_is_left_of_the_direction_is_measured() -> None:
    def left(row_normalization: str, strength: float) -> float:
        edit = site_edit(strength=strength)
        return along(edit, WEIGHT, factors(edit, WEIGHT, None, row_normalization, 3)).share_left

    assert left("none", 1.0) < 1e-12
    assert left("none", 0.3) == pytest.approx(0.7)
    assert left("pre", 1.0) > 0.05  # row norms differ by a factor of 15 here
    expected = edited_weight(WEIGHT, V[0], 1.0, "pre")
    assert left("pre", 1.0) == pytest.approx(float((V[0] @ expected).norm() / (V[0] @ WEIGHT).norm()))


def test_quantised_weights_are_refused() -> None:
    linear = torch.nn.Linear(4, 4)
    linear.weight = torch.nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match="quantised"):
        dense_weight(linear)


def test_the_random_numbers_of_every_gpu_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeding seeds every device; two that are not here tell whether their state was kept and given back."""
    given_back: dict[int, torch.Tensor] = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor([int(device)]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: given_back.update({int(device): state}))
    large = torch.randn(1030, 1040, generator=GENERATOR)
    factors(
        SiteEdit(directions=torch.eye(1, 1030), strengths=torch.ones(1), centres=torch.zeros(1)), large, None, "full"
    )
    assert {device: int(state) for device, state in given_back.items()} == {0: 0, 1: 1}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gpus_random_numbers_are_left_alone(device: str) -> None:
    torch.cuda.manual_seed(5)
    state = torch.cuda.get_rng_state()
    large = torch.randn(1030, 1040, generator=GENERATOR).to(device)
    factors(
        SiteEdit(directions=torch.eye(1, 1030), strengths=torch.ones(1), centres=torch.zeros(1)), large, None, "full"
    )
    assert torch.equal(torch.cuda.get_rng_state(), state)
