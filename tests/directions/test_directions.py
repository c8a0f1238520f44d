"""Directions as values: fractional points, files, separation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iconoclast_tl.directions.directions import Directions, load_directions, save_directions
from iconoclast_tl.directions.separation import separation
from iconoclast_tl.foundation.errors import UserError


def some(points: int = 4, width: int = 6) -> Directions:
    vectors = torch.randn(points, width, generator=torch.Generator().manual_seed(0))
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    vectors[0] = 0
    return Directions.single(vectors, torch.arange(points, dtype=torch.float64), {"model": "some"})


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    saved = some()
    save_directions(tmp_path / "d.safetensors", saved)
    found = load_directions(tmp_path / "d.safetensors", n_layers=3, d_model=6)
    assert torch.equal(found.vectors, saved.vectors)
    assert found.provenance == saved.provenance


@pytest.mark.parametrize(("layers", "width"), [(4, 6), (3, 7)])
def test_a_file_of_another_model_is_refused(tmp_path: Path, layers: int, width: int) -> None:
    save_directions(tmp_path / "d.safetensors", some())
    with pytest.raises(UserError, match="another model"):
        load_directions(tmp_path / "d.safetensors", layers, width)


def test_points_outside_and_points_without_a_direction_are_the_users_line() -> None:
    directions = some()
    assert torch.allclose(directions.at(2), directions.main[2])
    with pytest.raises(UserError, match=r"outside 0\.\.3"):
        directions.at(3.5)
    with pytest.raises(UserError, match="no direction at residual point 0"):
        directions.at(0)


def test_separation_is_d_prime_by_hand() -> None:
    v = torch.tensor([[1.0, 0.0]])
    target = torch.tensor([[[4.0, 9.0]], [[6.0, -9.0]]])  # along v: mean 5, variance 2
    neutral = torch.tensor([[[0.0, 1.0]], [[2.0, 5.0]]])  # along v: mean 1, variance 2
    assert torch.allclose(separation(v, target, neutral), torch.tensor([4 / 2**0.5], dtype=torch.float64))
    assert not separation(torch.zeros(1, 2), target, neutral).any()


def with_separation(*values: float, undefined: tuple[int, ...] = (0,)) -> Directions:
    vectors = torch.eye(len(values))
    vectors[list(undefined)] = 0
    return Directions.single(vectors, torch.tensor(values, dtype=torch.float64))


def test_the_best_point_is_not_among_the_last_fifth() -> None:
    assert with_separation(0, 1, 3, 2, 5, 9).best == 4  # 80% of 5 layers: points up to 4
    assert with_separation(0, 1, 3, 2, 5, 6, 9).best == 5  # 80% of 6, rounded up
    assert with_separation(0, 9).best == 1


def test_a_point_without_a_direction_is_never_the_best() -> None:
    assert with_separation(0, -1, -3).best == 1  # even where every other separates the wrong way
    assert with_separation(0, 0, 0, 9, undefined=(0, 1, 2)).best == 3


def test_one_prompt_a_side_still_orders_the_points() -> None:
    v = torch.eye(2)
    target, neutral = torch.tensor([[[1.0, 0], [0, 5]]]), torch.zeros(1, 2, 2)
    found = separation(v, target, neutral)
    assert bool(found.isfinite().all())


def test_several_directions_of_a_point_come_with_their_weights(tmp_path: Path) -> None:
    vectors = torch.stack([torch.eye(4, 6), torch.eye(6)[1:5]])
    vectors[1, 2] = 0  # the second direction is missing there
    weights = torch.tensor([[1.0, 1, 1, 1], [0.5, 0.25, 0, 1]])
    saved = Directions(vectors, torch.ones(4), weights, {"selection": {"position": -2, "point": 3}})
    save_directions(tmp_path / "d.safetensors", saved)
    found = load_directions(tmp_path / "d.safetensors", n_layers=3, d_model=6)
    assert torch.equal(found.vectors, vectors)
    assert torch.equal(found.main, vectors[0])
    assert (found.position, found.chosen, found.best) == (-2, 3, 3)
    assert torch.equal(found.at(1), vectors[0, 1])
    assert torch.equal(found.span(1), vectors[:, 1])
    assert found.weights_at(0.5).tolist() == [1.0, 0.375]
    assert found.weights_at(0.25).tolist() == [1.0, 0.4375]  # three quarters of a half, and one of a quarter
    assert found.weights_at(1.5).tolist() == [1.0, 0.25]  # of the one that there is
    other = Directions(vectors, torch.ones(4), weights * 0.9, saved.provenance)
    elsewhere = Directions(vectors, torch.ones(4), weights, {"selection": {"position": -2, "point": 1}})
    assert len({other.digest(), elsewhere.digest(), saved.digest()}) == 3
    assert found.digest() == saved.digest()


def test_a_file_with_one_direction_a_point_is_read() -> None:
    one = some()
    assert one.vectors.shape == (1, 4, 6)
    assert one.weights.tolist() == [[0.0, 1.0, 1.0, 1.0]]
