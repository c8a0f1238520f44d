"""Causal attribution: the change of a score when one part is ablated, restored, or replaced by its output elsewhere.

    ablate            s(nothing edited) − s(the part at λ = 1)
    restore           s(the whole edit but the part) − s(the whole edit)
    interchange       s(target) − s(target, with what the part wrote on the matched neutral prompt)
    interchange-back  s(neutral, with what the part wrote on the target prompt) − s(neutral)

All parts of a layer are rows of one batch. What enters the layer is the same for all of them and is computed once, so
that the layers below are not run again and H parts cost about half of H forward passes. Memory holds the states between
two layers for some prompts, whatever the depth of the model.

Interchange interventions: Vig et al., 2004.12265; Geiger et al., 2106.02997. Which way to patch: Heimersheim and Nanda,
2404.15255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from iconoclast_tl.architecture.hook_points import SiteFunction
from iconoclast_tl.architecture.offloading import device_of
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.attribution.changes import Interchange, Written, at_positions, changing
from iconoclast_tl.attribution.parts import Part, by_layer
from iconoclast_tl.attribution.query import Query
from iconoclast_tl.attribution.result import Attribution, PositionSums
from iconoclast_tl.attribution.steps import Steps
from iconoclast_tl.edits.hooks import hooked
from iconoclast_tl.edits.updates import Updates, apply_update
from iconoclast_tl.execution.batching import Room
from iconoclast_tl.execution.resumption import resumes
from iconoclast_tl.scores.score import Score, ScoreBatch

Causal = Literal["ablate", "restore", "interchange", "interchange-back"]
RISES: frozenset[Causal] = frozenset({"restore", "interchange-back"})
"""Methods whose intervention on a part that carries the behaviour raises the score; the others lower it."""
EXCHANGES: frozenset[Causal] = frozenset({"interchange", "interchange-back"})
"""Methods that need matched prompts."""


@dataclass(frozen=True)
class Intervention:
    """One row of a batch: the part that changes, and where; None: at every position."""

    part: Part
    position: int | None = None


def causal(method: Causal, query: Query, other: Score | None = None) -> Attribution:
    """The value of every part. other: for interchange, the score of the matched prompts, in the same order.

    With `query.positions` the cost is multiplied by the number of positions.
    """
    work, sums = _Work(method, query, other if method in EXCHANGES else None), query.new_sums()
    values = torch.zeros(len(query.prompts), len(query.subject.parts))

    def take(chosen: Tensor) -> None:
        values[chosen] = work.on(query.prompts[chosen], chosen, sums)

    most = max((len(parts) for parts in by_layer(query.subject.parts).values()), default=1)
    room = Room(max(query.batch_size // most, 1))
    room.over(torch.arange(len(query.prompts)), take, query.track, method)
    by_position = None if sums is None else sums.result()
    return Attribution(method, query.score.name, query.subject.parts, values, by_position)


Scored = tuple[Intervention, Float[Tensor, "n"]]
"""The score of every prompt under an intervention."""


class _Work:
    """One method on one model."""

    def __init__(self, method: Causal, query: Query, other: Score | None) -> None:
        self._method, self._other, self._positions = method, other, query.positions
        self._score, self._subject, self._sites = query.score, query.subject, query.sites
        self._rows = query.batch_size
        subject, sites = query.subject, query.sites
        self._base = subject.at_share(1.0 if method == "restore" else 0.0)
        self._place = {part: index for index, part in enumerate(subject.parts)}
        self._updates = {site: update.to(device_of(sites[site].module)) for site, update in subject.updates.items()}
        self._resumes: bool | None = None

    @torch.no_grad()
    def on(
        self, prompts: Int[Tensor, "n"], numbers: Int[Tensor, "n"], sums: PositionSums | None
    ) -> Float[Tensor, "n part"]:
        """The values of some prompts, layer by layer."""
        asked, model = self._score.ask(prompts), self._score.model
        if self._resumes is None:
            some = {1, model.n_layers // 2, model.n_layers - 1} - {0}  # layers need not all be alike
            self._resumes = model.n_layers > 1 and all(resumes(model, asked.forced.batch, layer) for layer in some)
        steps = Steps(model, asked, self._resumes)
        others = None if self._other is None else Steps(model, self._other.ask(prompts), self._resumes)
        with hooked(self._base, self._sites):
            base = self._score.read(asked)[0].float().cpu()
        n, width = len(self._subject.parts), asked.forced.batch.input_ids.shape[1]
        found, by_position = torch.zeros(len(prompts), n), torch.zeros(len(prompts), width if sums else 0, n)
        mine = by_layer([part for part in self._subject.parts if self._acts(part)])
        for layer in range(max(mine, default=-1) + 1):
            for one, scores in self._at_layer(layer, mine.get(layer, []), steps, others):
                value = (scores - base) if self._method in RISES else (base - scores)
                place = self._place[one.part]
                if one.position is None:
                    found[:, place] = value
                else:
                    by_position[:, one.position + asked.ends, place] = value
        if sums is not None:
            sums.add(by_position, _real(asked), asked.ends, numbers)
        return found

    def _at_layer(self, layer: int, parts: Sequence[Part], steps: Steps, others: Steps | None) -> list[Scored]:
        """All interventions at a layer; then both walk on."""
        written = {} if others is None else self._written(others, layer)
        room = Room(max(self._rows // len(steps.asked.owner), 1))
        rows = self._interventions(parts, steps.asked)
        here = steps.here

        def score(some: Tensor) -> list[Scored]:
            return self._scores(here, layer, [rows[number] for number in some.tolist()], written, others)

        found = room.over(torch.arange(len(rows)), score)
        if layer + 1 < self._score.model.n_layers and steps.resumes:
            with hooked(self._base, self._sites):
                steps.advance(layer)
        return [one for part in found for one in part]

    def _acts(self, part: Part) -> bool:
        """Whether the method can act on a part: one that the edit leaves alone cannot be restored."""
        return self._method != "restore" or self._subject.strength(part) != 0

    def _interventions(self, parts: Sequence[Part], asked: ScoreBatch) -> list[Intervention]:
        found = [Intervention(part) for part in parts]
        if self._positions:
            width = asked.forced.batch.input_ids.shape[1]
            found += [Intervention(part, column - asked.ends) for part in parts for column in range(width)]
        return found

    def _written(self, others: Steps, layer: int) -> dict[Site, Written]:
        """What the other prompts' rows write at a layer, and what is read for it; they walk on to the next."""
        found: dict[Site, Written] = {}

        def keep(site: Site) -> SiteFunction:
            def look(y: Tensor, x: Tensor | None) -> Tensor:
                found[site] = Written(y.clone(), None if x is None else x.clone())
                return y

            return look

        with changing({site: keep(site) for site in self._updates if site.layer == layer}, self._sites):
            others.advance(layer)
        return found

    def _scores(
        self,
        asked: ScoreBatch,
        layer: int,
        rows: Sequence[Intervention],
        written: Mapping[Site, Written],
        others: Steps | None,
    ) -> list[Scored]:
        """The score of every prompt under every intervention."""
        where = _where(rows, asked)
        changes: dict[Site, SiteFunction] = {}
        read: dict[Site, SiteFunction] = {}
        for site in self._updates:
            if site.layer == layer and others is None:
                changes[site] = self._edited(site, rows, asked, where)
            elif site.layer == layer and others is not None:
                mine = [one.part if one.part.site == site else None for one in rows]
                exchange, given = Interchange(mine, asked, others.asked, where), written[site]
                if any(part is not None and part.head is None for part in mine):
                    changes[site] = exchange.whole(given.y)
                if any(part is not None and part.head is not None for part in mine) and given.x is not None:
                    read[site] = exchange.heads(given.x, self._subject.strengths[site].shape[-1])
        elsewhere = {site for site in self._base.at if site.layer != layer}
        kept = Updates(
            {site: self._base.at[site] for site in elsewhere}, {s: self._base.strengths[s] for s in elsewhere}
        )
        with ExitStack() as stack:
            stack.enter_context(hooked(kept, self._sites))
            stack.enter_context(changing(changes, self._sites, read))
            scores = self._score.read(asked.times(len(rows)), len(rows)).float().cpu()
        return list(zip(rows, scores, strict=True))

    def _edited(
        self, site: Site, rows: Sequence[Intervention], asked: ScoreBatch, where: Bool[Tensor, "row pos"] | None
    ) -> SiteFunction:
        """The part at λ = 1 alone, or the whole edit without it; elsewhere as the base has it."""
        restores = self._method == "restore"
        base = self._subject.strengths[site] * float(restores)
        of_row = base.expand(len(rows), *base.shape).clone()
        for number, one in enumerate(rows):
            at, head = self._subject.where(one.part)
            if at == site:
                of_row[number, ..., slice(None) if head is None else head] = 1.0 - float(restores)
        device, update = device_of(self._sites[site].module), self._updates[site]
        of_row, of_base = of_row.to(device), base[None].to(device)
        candidates = torch.arange(len(rows)).repeat_interleave(len(asked.owner)).to(device)

        def change(y: Tensor, x: Tensor | None) -> Tensor:
            changed = apply_update(y, x, update, of_row, candidates)
            return changed if where is None else at_positions(where, changed, apply_update(y, x, update, of_base))

        return change


def _where(rows: Sequence[Intervention], asked: ScoreBatch) -> Bool[Tensor, "row pos"] | None:
    """At which positions of the batch something changes; None: at all of them."""
    if all(one.position is None for one in rows):
        return None
    columns = torch.arange(asked.forced.batch.input_ids.shape[1]) - asked.ends
    here = [torch.ones_like(columns).bool() if one.position is None else columns == one.position for one in rows]
    return torch.stack(here).repeat_interleave(len(asked.owner), dim=0)


def _real(asked: ScoreBatch) -> Bool[Tensor, "n pos"]:
    """Where a prompt has a token, in any of its rows."""
    mask = asked.forced.batch.attention_mask
    return torch.zeros(asked.n, mask.shape[1], dtype=mask.dtype).index_add(0, asked.owner, mask).bool()
