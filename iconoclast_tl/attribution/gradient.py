"""The gradient of a score in every part's strength, and its integral along the way to an edit.

    gradient     −∂s/∂λ_p at λ = 0: what taking the part away would do, to first order (attribution patching)
    integrated   −λ_p ∫₀¹ ∂s/∂λ_p (t λ) dt: sums to s(0) − s(λ), so that saturation hides nothing

Since y' is linear in λ, −∂s/∂λ_p = Σ_pos Σ_k (∂s/∂y' · v_k)(v_kᵀ y_p − c_pk): one backward pass gives all parts, all
prompts and all positions. A forward hook keeps the second factor, a number a part and position, and a hook on the
gradient multiplies it by the first; no activation is kept but what autograd needs for the batch.

Nanda, Attribution patching (2023); Sundararajan et al., Integrated gradients (1703.01365).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.architecture.hook_points import HookedModule
from iconoclast_tl.architecture.offloading import device_of
from iconoclast_tl.architecture.reading import sum_parts, widened
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.attribution.changes import changing
from iconoclast_tl.attribution.query import Query
from iconoclast_tl.attribution.result import Attribution, PositionSums
from iconoclast_tl.edits.hooks import hooked
from iconoclast_tl.execution.batching import Room
from iconoclast_tl.scores.score import ScoreBatch

FIRST = Site(0, "resid_pre")
NODES = 4
"""Nodes of the first quadrature; doubled until sum and total agree."""
MOST_NODES = 64
TOLERANCE = 0.01
"""Largest gap between the integrated values' sum and s(0) − s(λ), as a share of the latter."""


def gradient(query: Query) -> Attribution:
    """The value of every part at λ = 0; costs about two forward passes."""
    sums = query.new_sums()
    values = _Recorder(query, weights=None).over(0.0, "gradient", sums)
    by_position = None if sums is None else sums.result()
    return Attribution("gradient", query.score.name, query.subject.parts, values, by_position)


def integrated(query: Query) -> Attribution:
    """By Gauss–Legendre quadrature, whose nodes are doubled until the sum is within `TOLERANCE` of s(0) − s(λ).

    `checks` holds the remaining `gap`, in the unit of the score, and the number of nodes. Where a token is sent to
    another expert on the way, the score jumps and no gradient sees it: the gap then stays.
    """
    before, after = (edited_scores(query, share) for share in (0.0, 1.0))
    total = float((before - after).double().mean())
    recorder, n = _Recorder(query, weights=query.subject.strengths), NODES
    while True:
        sums, values = query.new_sums(), torch.zeros(len(query.prompts), len(query.subject.parts))
        for node, weight in zip(*_quadrature(n), strict=True):
            values += recorder.over(node, f"integrated, {n} nodes", sums, weight)
        gap = abs(float(values.double().sum(-1).mean()) - total)
        if gap <= TOLERANCE * abs(total) or 2 * n > MOST_NODES:
            break
        n *= 2
    checks = {"total": total, "gap": gap, "nodes": float(n)}
    by_position = None if sums is None else sums.result()
    return Attribution("integrated", query.score.name, query.subject.parts, values, by_position, checks)


def edited_scores(query: Query, share: float) -> Float[Tensor, "n"]:
    """The score of every prompt under this share of the edit's strengths."""
    with hooked(query.subject.at_share(share), query.sites):
        return query.scores()


def _quadrature(n: int) -> tuple[list[float], list[float]]:
    """Nodes and weights on [0, 1]."""
    from numpy.polynomial.legendre import leggauss

    nodes, weights = leggauss(n)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


class _Recorder:
    """Hooks that compute −w_kp ∂s/∂λ_kp during one forward and one backward pass."""

    def __init__(self, query: Query, weights: Mapping[Site, Float[Tensor, "k *part"]] | None) -> None:
        """weights: w of every direction and part; None: 1."""
        self._query, self._subject, self._weights = query, query.subject, weights
        updates = query.subject.updates
        self._sites = {site: where for site, where in query.sites.items() if site in {*updates, FIRST}}
        self._updates = {site: update.to(device_of(query.sites[site].module)) for site, update in updates.items()}

    def over(
        self, share: float, description: str, sums: PositionSums | None, weight: float = 1.0
    ) -> Float[Tensor, "prompt part"]:
        """`weight` times the gradient at this share of the edit's strengths, for every prompt."""
        query = self._query
        found = torch.zeros(len(query.prompts), len(self._subject.parts))

        def take(chosen: Tensor) -> None:
            asked = query.score.ask(query.prompts[chosen])
            of_row = weight * self._of_rows(asked, share)
            found[chosen] = torch.zeros(asked.n, of_row.shape[-1]).index_add(0, asked.owner, of_row.sum(1))
            if sums is not None:
                sums.add(of_row, asked.forced.batch.attention_mask, asked.ends, chosen[asked.owner])

        Room(query.batch_size).over(torch.arange(len(query.prompts)), take, query.track, description)
        return found

    def _of_rows(self, asked: ScoreBatch, share: float) -> Float[Tensor, "row pos part"]:
        shape = asked.forced.batch.input_ids.shape
        kept: dict[Site, Tensor] = {}
        products: dict[Site, Tensor] = {}
        before = {site: partial(self._look, site, kept) for site in self._sites}
        after = {site: partial(self._watch, site, kept, products) for site in self._updates}
        with (
            changing(before, self._sites),
            hooked(self._subject.at_share(share), self._sites),
            changing(after, self._sites),
            _leaf(self._sites[FIRST]) as leaf,
        ):
            torch.autograd.grad(self._query.score.read(asked).sum(), leaf)
        of_row = torch.zeros(*shape, len(self._subject.parts))
        for place, part in enumerate(self._subject.parts):
            site, head = self._subject.where(part)
            values = products[site].reshape(*shape, -1)
            of_row[..., place] = values[..., head or 0].cpu()
        return of_row * asked.forced.batch.attention_mask[..., None]

    @torch.no_grad()
    def _look(self, site: Site, kept: dict[Site, Tensor], y: Tensor, x: Tensor | None) -> Tensor:
        """Record v_kᵀ y_p − c_pk of every direction and part, before the edit."""
        if site in self._updates:
            update = self._updates[site]
            states = widened(x if update.source == "input" and x is not None else y)
            reads = update.reads[0].to(states)
            if update.offsets is None:
                kept[site] = states @ reads.T
            else:
                by_part = [sum_parts(states * read, update.offsets.shape[-1]) for read in reads]
                kept[site] = torch.stack(by_part, dim=-2) + update.offsets[0].to(states)
        return y

    def _watch(
        self, site: Site, kept: Mapping[Site, Tensor], products: dict[Site, Tensor], y: Tensor, x: Tensor | None
    ) -> Tensor:
        """Multiply what was recorded by the gradient at what the edit leaves."""
        update, before = self._updates[site], kept[site]
        weights = torch.ones_like(before[0]) if self._weights is None else self._weights[site].to(before)

        def multiply(gradient: Tensor) -> None:
            along = widened(gradient) @ update.writes[0].to(before).T
            if update.offsets is not None:
                products[site] = (along[..., None] * before * weights).sum(-2)
                return
            constant = 0 if update.constants is None else widened(gradient) @ update.constants[0].to(before).T
            products[site] = ((along * before + constant) * weights).sum(-1, keepdim=True)

        y.register_hook(multiply)  # type: ignore[no-untyped-call]
        return y.clone() if y._is_view() else y  # what is added to a view in place would take the hook away


@contextmanager
def _leaf(first: HookedModule) -> Iterator[list[Tensor]]:
    """Make what enters the first layer a leaf of the graph: gradients end there."""
    found: list[Tensor] = []

    def begin(module: Any, args: Any, kwargs: Any) -> None:
        found.append((args[0] if args else kwargs["hidden_states"]).requires_grad_())

    handle = first.module.register_forward_pre_hook(begin, with_kwargs=True, prepend=True)
    try:
        yield found
    finally:
        handle.remove()
