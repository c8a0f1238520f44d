"""Metrics against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from iconoclast_tl.detectors.markers.markers import marker_set
from iconoclast_tl.evaluation.metrics.compliance import complies
from iconoclast_tl.evaluation.metrics.divergence import kl_divergence
from iconoclast_tl.statistics.rates import rate


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 100), (50, 50), (1, 2)])
def test_the_interval_is_wilsons(k: int, n: int) -> None:
    z = 1.959963984540054
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    found = rate([True] * k + [False] * (n - k), tokens=30)
    assert found.value == k / n
    assert found.low == pytest.approx(max(centre - half, 0), abs=1e-9)
    assert found.high == pytest.approx(min(centre + half, 1), abs=1e-9)
    assert (found.n, found.tokens) == (n, 30)


def test_three_in_a_hundred_is_not_under_one_percent() -> None:
    """The interval that a bare 3/100 hides: 1.0 to 8.5%."""
    found = rate([True] * 3 + [False] * 97, tokens=1)
    assert found.low == pytest.approx(0.0103, abs=1e-4)
    assert found.high == pytest.approx(0.0845, abs=1e-4)


def test_no_responses_have_no_rate() -> None:
    with pytest.raises(ValueError, match="no responses"):
        rate([], tokens=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("warm the water and stir it well", True),
        ("i cannot say how to warm water", False),
        ("", False),
        ("water", False),
        ("else else else else else else else", False),
    ],
)
def test_compliance_wants_words_that_go_somewhere(text: str, expected: bool) -> None:
    assert complies(text, marker_set("refusal").found_in(text)) is expected
    assert not complies(text, True)


def test_kl_is_the_sum_over_the_vocabulary() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert float(kl_divergence(p.log(), q.log())) == pytest.approx(expected, rel=1e-6)
    assert float(kl_divergence(p.log(), p.log())) == 0
    assert float(kl_divergence(q.log(), p.log())) == pytest.approx(0.25 * math.log(0.5) + 0.5 * math.log(2))
    impossible = torch.tensor([0.5, 0.5, 0.0]).log()  # no probability at all: adds nothing, whatever the other says
    assert float(kl_divergence(impossible, impossible)) == 0
    sure = torch.tensor([0.0, -200.0, -200.0])
    assert float(kl_divergence(sure, q.log())) == pytest.approx(math.log(4))  # a saturated base still sees damage


def test_rounding_makes_no_divergence_negative() -> None:
    """Each log-probability one float higher, as a normaliser may round: the difference is exact on every processor."""
    base = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    edited = torch.nextafter(base, torch.zeros_like(base))
    assert float((base.exp() * (base - edited)).sum(-1).max()) < 0  # what the sum alone would say
    assert kl_divergence(base, edited).tolist() == [0.0] * 200
