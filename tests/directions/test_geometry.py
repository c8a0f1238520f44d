"""Geometry: exact identities."""

from __future__ import annotations

import math

import torch

from iconoclast_tl.directions.geometry import interpolate, normalize, orthonormalize, principal_basis, project_out

GENERATOR = torch.Generator().manual_seed(0)


def test_interpolation_turns_from_one_vector_to_the_next() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert torch.equal(interpolate(vectors, 0), vectors[0])
    assert torch.equal(interpolate(vectors, 1), vectors[1])
    half = math.sqrt(0.5)
    assert torch.allclose(interpolate(vectors, 0.5), torch.tensor([half, half]))
    quarter = torch.tensor([0.75, 0.25]) / math.hypot(0.75, 0.25)
    assert torch.allclose(interpolate(vectors, 0.25), quarter)


def test_orthonormalised_vectors_span_what_they_spanned() -> None:
    vectors = torch.randn(3, 4, 8, generator=GENERATOR)
    result = orthonormalize(vectors)
    gram = torch.einsum("kld,jld->lkj", result, result)
    assert torch.allclose(gram, torch.eye(3).expand(4, 3, 3), atol=1e-6)
    for layer in range(4):
        both = torch.cat([vectors[:, layer], result[:, layer]])
        assert int(torch.linalg.matrix_rank(both, tol=1e-4)) == 3
    raw = torch.einsum("kld,jld->lkj", vectors, vectors)
    assert not torch.allclose(raw, torch.eye(3).expand(4, 3, 3), atol=1e-1)


def test_a_vector_that_repeats_another_becomes_no_direction() -> None:
    v = torch.randn(1, 2, 5, generator=GENERATOR)
    result = orthonormalize(torch.cat([v, 3 * v, torch.zeros(1, 2, 5)]))
    assert torch.allclose(result[0], normalize(v)[0])
    assert not result[1:].any()


def test_the_principal_basis_explains_the_most_variance() -> None:
    rows = torch.randn(50, 6, generator=GENERATOR) * torch.tensor([5.0, 4, 1, 1, 1, 1]) + 10
    basis = principal_basis(rows, 2)
    centred = (rows - rows.mean(0)).double()
    explained = (centred @ basis.T).square().sum()
    best = torch.linalg.eigvalsh(centred.T @ centred)[-2:].sum()
    assert torch.allclose(explained, best)
    off_centre = torch.linalg.svd(rows.double(), full_matrices=False).Vh[:2]  # without centring: another subspace
    assert (centred @ off_centre.T).square().sum() < 0.9 * best


def test_projecting_out_a_basis_leaves_nothing_along_it() -> None:
    basis = torch.linalg.qr(torch.randn(6, 2, generator=GENERATOR, dtype=torch.float64)).Q.T
    vector = torch.randn(6, generator=GENERATOR, dtype=torch.float64)
    rest = project_out(vector, basis)
    assert float((basis @ rest).abs().max()) < 1e-12
    assert float((basis @ vector).abs().max()) > 1e-3


def test_zero_stays_zero() -> None:
    assert not normalize(torch.zeros(3, 4)).any()


def test_axes_without_variance_are_none() -> None:
    line = torch.outer(torch.arange(20.0), torch.eye(6)[2]) + 3
    assert principal_basis(line, 3).shape == (1, 6)
    assert abs(float(principal_basis(line, 3)[0, 2])) > 0.999
    assert principal_basis(torch.ones(5, 6), 3).shape == (0, 6)
    assert principal_basis(torch.randn(20, 6, generator=torch.Generator().manual_seed(1)), 3).shape == (3, 6)
