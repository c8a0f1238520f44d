"""Streaming statistics equal those of all rows at once."""

from __future__ import annotations

import pytest
import torch

from iconoclast_tl.activations.statistics import ResidualStats


def test_batches_of_any_size_give_the_mean_and_variance_of_all_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(57, 2, 5, generator=generator, dtype=torch.float64) + 1e6  # an offset that cancels badly
    stats = ResidualStats()
    for size in (1, 13, 2, 41):
        start = sum(len(rows) for rows in data.split([1, 13, 2, 41])[: [1, 13, 2, 41].index(size)])
        stats.update(data[start : start + size])
    found = stats.stats()
    assert found.n == 57
    # 57 float64 roundings of 1e-16 in a mean, in whatever order; around 1e6 one of them is 1e-10 of a deviation.
    assert torch.allclose(found.mean, data.mean(0), rtol=1e-13)
    assert torch.allclose(found.variance, data.var(0, correction=0), rtol=1e-8)
    naive = data.square().mean(0) - data.mean(0).square()  # what a sum of squares would give: off by 1e-4
    assert not torch.allclose(naive, data.var(0, correction=0), rtol=1e-6)


def test_no_rows_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no rows"):
        ResidualStats().stats()
