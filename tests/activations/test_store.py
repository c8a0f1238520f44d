"""Activations come back as they went, position by position, and lie in their file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from iconoclast_tl.activations.store import (
    SETS,
    Activations,
    Residuals,
    activation_sink,
    keep_in,
    load_activations,
    save_activations,
)
from iconoclast_tl.architecture.sites import WRITERS
from iconoclast_tl.foundation.errors import UserError
from tests.foundation.test_tensor_file import mapped_to

SIZES = {"target_train": 5, "neutral_train": 7, "target_val": 2, "neutral_val": 3}
N_POINTS, D_MODEL = 3, 5  # an odd number of values, so that the means behind must be aligned


def residuals(seed: int) -> Residuals:
    generator = torch.Generator().manual_seed(seed)
    return Residuals(*(torch.randn(SIZES[name], N_POINTS, D_MODEL, generator=generator) for name in SETS))


@pytest.fixture
def kept() -> Activations:
    last = residuals(0)
    means = {name: torch.randn(2, D_MODEL, dtype=torch.float64) for name in WRITERS}
    reads = {"mlp_out": torch.randn(2, 4, dtype=torch.float64)}
    sets = (last.target_train, last.neutral_train, last.target_val, last.neutral_val)
    return Activations(
        **dict(zip(SETS, sets, strict=True)),
        neutral_writes=means,
        neutral_reads=reads,
        earlier={-2: residuals(1), -3: residuals(2)},
    )


def test_the_file_holds_every_position(tmp_path: Path, kept: Activations) -> None:
    path = tmp_path / "a.safetensors"
    save_activations(path, kept, "one")
    found = load_activations(path, "one")
    assert found is not None
    assert found.positions == kept.positions == (-1, -2, -3)
    for position in kept.positions:
        for name in SETS:
            assert torch.equal(getattr(found.at(position), name), getattr(kept.at(position), name))
    assert torch.equal(found.at().target_val, kept.target_val)
    assert not torch.equal(found.at(-2).target_val, found.at(-3).target_val)
    assert found.n_points == N_POINTS
    assert found.neutral_reads.keys() == {"mlp_out"}
    assert not found.target_reads
    for name, mean in kept.neutral_means.items():
        assert torch.equal(found.neutral_means[name], mean)
    assert torch.allclose(kept.neutral_means["resid_pre"], kept.neutral_train[:, :-1].double().mean(0))
    assert load_file(path)["target_train"].shape == (3, N_POINTS, 5, D_MODEL)


def test_a_position_that_was_not_collected_is_the_users_line(kept: Activations) -> None:
    with pytest.raises(UserError, match=r"position -4 .*one of -1, -2, -3; .*activations\.positions"):
        kept.at(-4)
    with pytest.raises(UserError, match="position 0 "):
        kept.at(0)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux where memory lies")
def test_residuals_lie_in_the_file_those_of_a_point_side_by_side(tmp_path: Path, kept: Activations) -> None:
    path = tmp_path / "a.safetensors"
    save_activations(path, kept, "one")
    found = load_activations(path, "one")
    assert found is not None
    for position in found.positions:
        assert mapped_to(found.at(position).neutral_train) == str(path)
        assert all(found.at(position).neutral_train[:, point].is_contiguous() for point in range(N_POINTS))
    assert mapped_to(kept.neutral_train) != str(path)


def test_a_collection_that_is_stopped_leaves_what_was_there(tmp_path: Path, kept: Activations) -> None:
    path = tmp_path / "a.safetensors"
    save_activations(path, kept, "one")

    def stop(key: str) -> None:
        with activation_sink(path, SIZES, 1, N_POINTS, D_MODEL, {"key": key}) as stream:
            keep_in(stream, "target_train")([1, 0], torch.ones(2, 1, N_POINTS, D_MODEL))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop("two")
    assert load_activations(path, "two") is None
    assert load_activations(path, "one") is not None
    assert list(tmp_path.iterdir()) == [path]
