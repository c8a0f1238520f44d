"""What is left of a score when the first k heads of a ranking are ablated together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.attribution.parts import Part
from iconoclast_tl.attribution.query import Query
from iconoclast_tl.attribution.result import Attribution, resampling
from iconoclast_tl.edits.hooks import hooked
from iconoclast_tl.execution.batching import Room

HEADS = ("head", "attn")


@dataclass(frozen=True, eq=False)
class Curve:
    """The scores left when the first k heads of one method's ranking are ablated."""

    method: str
    ks: tuple[int, ...]
    scores: Float[Tensor, "k prompt"]

    def to_json(self) -> dict[str, Any]:
        """As it stands in attribution.json: means with 95% intervals over prompts."""
        resampled = resampling(self.scores.shape[1]) @ self.scores.double().T
        bounds = torch.quantile(resampled, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).T.tolist()
        rows = zip(self.ks, self.scores.double().mean(1).tolist(), bounds, strict=True)
        return {"points": [{"k": k, "score": score, "low": low, "high": high} for k, score, (low, high) in rows]}


def cumulative(found: Sequence[Attribution], query: Query) -> list[Curve]:
    """One curve a method, at k = 0, 1, 2, 3, 4, 6, 8, 12, … and all heads, λ = 1; each set of heads is run once."""
    heads = [part for part in query.subject.parts if part.component in HEADS]
    doubling = [step * 2**power for power in range(len(heads).bit_length()) for step in (1, 3)]
    ks = sorted({0, len(heads), *(k for k in doubling if k < len(heads))})
    rankings = {one.method: [part for part in one.top(len(one.parts), *HEADS) if part in set(heads)] for one in found}
    sets = sorted(
        {frozenset(ranking[:k]) for ranking in rankings.values() for k in ks}, key=lambda s: (len(s), sorted(s))
    )
    scores = scores_of(sets, query)
    known = dict(zip(sets, scores, strict=True))
    return [
        Curve(method, tuple(ks), torch.stack([known[frozenset(ranking[:k])] for k in ks]))
        for method, ranking in rankings.items()
    ]


@torch.no_grad()
def scores_of(sets: Sequence[frozenset[Part]], query: Query) -> list[Float[Tensor, "prompt"]]:
    """The score of every prompt with each of these sets of parts ablated."""

    def take(chosen: Tensor) -> list[Tensor]:
        n, groups = len(chosen), [sets[number] for number in chosen.tolist()]
        with hooked(query.subject.candidates(groups), query.sites) as assigned:

            def read(some: Tensor) -> Tensor:
                asked = query.score.ask(some)
                assigned.candidates = torch.arange(n).repeat_interleave(len(asked.owner))
                return query.score.read(asked.times(n), n).float().cpu()

            return list(torch.cat(Room(max(query.batch_size // n, 1)).over(query.prompts, read), dim=1))

    room = Room(max(query.batch_size // len(query.prompts), 1))
    every = room.over(torch.arange(len(sets)), take, query.track, "heads together")
    return [one for part in every for one in part]
