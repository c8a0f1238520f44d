"""Specs for tests that do not look at their strengths."""

from __future__ import annotations

from typing import Any

from iconoclast_tl.architecture.sites import WRITERS
from iconoclast_tl.search.pareto import Candidate
from iconoclast_tl.search.proxy import OnPolicy
from iconoclast_tl.search.spec import EditSpec
from iconoclast_tl.search.trace import Point

FAMILY = EditSpec(point=2.0, affine=False)
SPEC = EditSpec(point=2.0, affine=False, strengths=dict.fromkeys(WRITERS, (1.0,)))


def with_attention(*strengths: Any) -> EditSpec:
    """A spec with these strengths of attention, 0 of MLPs."""
    return EditSpec(point=2.0, affine=False, strengths={"attn_out": strengths, "mlp_out": (0.0,) * len(strengths)})


def candidate(number: int, spec: EditSpec, scores: Any, **more: Any) -> Candidate:
    """A candidate of this spec."""
    return Candidate(number=number, spec=spec, scores=scores, **more)


def point(**changes: Any) -> Point:
    """A point of a trace."""
    some = {"spec": SPEC, "numbers": [], "price": 1.0, "proxy_rate": 0.5, "proxy_kl": 0.1}
    return Point(**{**some, "said": OnPolicy(0.0, 0.0, 0), **changes})
