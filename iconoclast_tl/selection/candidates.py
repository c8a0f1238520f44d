"""Scores of candidate directions: each candidate is ablated, and added, in its own rows of a batch.

Three passes over (candidate × prompt) rows: target prompts under ablation of the whole stream, neutral prompts under
the same, and neutral prompts with the direction added where it was found. Arditi's and COSMIC's scores both come out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.architecture.hook_points import HookedModule
from iconoclast_tl.architecture.post_norm import Gains
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.directions.geometry import orthonormalize
from iconoclast_tl.edits.hooks import hooked
from iconoclast_tl.edits.updates import SiteUpdate, Updates
from iconoclast_tl.evaluation.metrics.divergence import kl_divergence
from iconoclast_tl.execution.batching import over_batches
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import TokenBatch, Tokens
from iconoclast_tl.scores.odds import token_log_odds


@dataclass(frozen=True)
class Changes:
    """The change for each candidate: its directions ablated everywhere, or the main one added at its point."""

    vectors: Float[Tensor, "candidate k d_model"]
    """Orthonormal; zero where there is none."""
    strengths: Float[Tensor, "candidate k"]
    """Strengths of the ablation."""
    points: Int[Tensor, "candidate"]
    coefficients: Float[Tensor, "candidate"]
    """α: what is added is α times the first vector."""

    def ablation(self, sites: Mapping[Site, HookedModule], gains: Gains) -> Updates:
        """Projection at every site: what the writers write, and what enters every layer."""
        at, strengths = {}, {}
        for site in sites:
            gain = gains[site.component][site.layer] if site.component in gains else None
            seen = self.vectors
            if gain is not None:  # what is written passes a norm before it reaches the stream
                seen = orthonormalize((self.vectors * gain.to(self.vectors)).transpose(0, 1)).transpose(0, 1)
            at[site], strengths[site] = SiteUpdate(reads=seen, writes=seen, constants=None), self.strengths
        return Updates(at, strengths)

    def addition(self) -> Updates:
        """+ α v at what enters the layer of the candidate's point; nothing for the last point, which no layer reads."""
        nothing, added = self.vectors[:1, :0], self.coefficients[:, None] * self.vectors[:, 0]
        at = {}
        for point in sorted(set(self.points.tolist())):
            mine = (self.points == point).to(added)[:, None]
            at[Site(point, "resid_pre")] = SiteUpdate(
                reads=nothing, writes=nothing, constants=None, shifts=mine * added
            )
        return Updates(at, dict.fromkeys(at, self.strengths[:, :0]))


@dataclass(frozen=True)
class CandidateScores:
    """Means over prompts, one for every candidate; the formulas stand in `selection.rules`."""

    bypass: Float[Tensor, "candidate"]
    induce: Float[Tensor, "candidate"]
    kl: Float[Tensor, "candidate"]
    to_neutral: Float[Tensor, "candidate"]
    to_target: Float[Tensor, "candidate"]


@dataclass(frozen=True, eq=False, kw_only=True)
class CandidateScorer:
    """The model and the prompts on which candidates are tried."""

    model: Model
    target: Sequence[Tokens]
    neutral: Sequence[Tokens]
    tokens: Int[Tensor, "t"]
    """First tokens of the behaviour; none: its log-odds are NaN."""
    base: Float[Tensor, "n vocab"]
    """The unedited model's log-probabilities of the first token, on neutral prompts."""
    points: Sequence[int]
    """Residual points at which activations are compared: those where the two sides are least alike."""
    batch_size: int
    track: Track = silent

    def score(
        self,
        changes: Changes,
        target_mean: Float[Tensor, "low d_model"],
        neutral_mean: Float[Tensor, "low d_model"],
    ) -> CandidateScores:
        """All scores of all candidates. The means are the unedited model's at `points`, over the same prompts."""
        ablation, addition = changes.ablation(self.model.sites, self.model.gains), changes.addition()
        n = len(changes.points)
        bypass, kl, induce = (torch.zeros(n, len(side)) for side in (self.target, self.neutral, self.neutral))

        def log_odds(into: Tensor) -> Keep:
            def keep(candidates: Tensor, prompts: Tensor, log_probs: Tensor) -> None:
                into[candidates, prompts] = token_log_odds(log_probs, self.tokens) if len(self.tokens) else torch.nan

            return keep

        def divergence(candidates: Tensor, prompts: Tensor, log_probs: Tensor) -> None:
            kl[candidates, prompts] = kl_divergence(self.base[prompts], log_probs)

        ablated = self._run(ablation, self.target, n, log_odds(bypass), "bypass scores")
        self._run(ablation, self.neutral, n, divergence, "KL scores")
        added = self._run(addition, self.neutral, n, log_odds(induce), "induce scores")
        return CandidateScores(
            bypass.mean(1), induce.mean(1), kl.mean(1), _cosines(ablated, neutral_mean), _cosines(added, target_mean)
        )

    def _run(self, updates: Updates, prompts: Sequence[Tokens], n: int, keep: Keep, description: str) -> Tensor:
        """Run every prompt for every candidate; returns the mean activations at `points`, per candidate."""
        lanes = [(candidate, prompt) for candidate in range(n) for prompt in range(len(prompts))]
        means = torch.zeros(n, len(self.points), self.model.d_model)
        with hooked(updates, self.model.sites) as assigned, _recorded(self.model.sites, self.points) as found:

            @torch.no_grad()
            def run(batch: TokenBatch) -> None:
                candidates, numbers = torch.tensor([lanes[row] for row in batch.rows]).unbind(1)
                assigned.candidates = candidates
                logits = self.model.hf(**self.model.inputs(batch), logits_to_keep=1).logits[:, -1].float().cpu()
                keep(candidates, numbers, logits.log_softmax(-1))
                here = torch.stack([found[point][:, -1].float().cpu() for point in self.points], dim=1)
                means.index_add_(0, candidates, here / len(prompts))

            rows = [prompts[prompt] for _, prompt in lanes]
            over_batches(run, rows, self.model.pad_id, self.batch_size, self.track, description)
        return means


Keep = Callable[[Tensor, Tensor, Tensor], None]
"""(candidate of every row, its prompt, log-probabilities of its first token) → kept."""


def least_alike(
    target: Float[Tensor, "point d_model"], neutral: Float[Tensor, "point d_model"], share: float
) -> list[int]:
    """The share of the points 1 … L−1, at least one, at which the means of the two sides have the least cosine."""
    cosines = torch.nn.functional.cosine_similarity(target.double(), neutral.double(), dim=-1)[1:-1]
    n = max(1, round(share * len(cosines)))
    return sorted((cosines.argsort()[:n] + 1).tolist())


def _cosines(
    means: Float[Tensor, "candidate low d_model"], wanted: Float[Tensor, "low d_model"]
) -> Float[Tensor, "candidate"]:
    """Mean over the points of the cosine of mean activations."""
    return torch.nn.functional.cosine_similarity(means.double(), wanted.double(), dim=-1).mean(-1).float()


@contextmanager
def _recorded(sites: Mapping[Site, HookedModule], points: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Record what enters the layers of these points, after the hooks that are already on."""
    found: dict[int, Tensor] = {}
    handles: list[Any] = []

    def keep(point: int) -> Callable[[Tensor, Tensor | None], Tensor]:
        def look(y: Tensor, x: Tensor | None) -> Tensor:
            found[point] = y
            return y

        return look

    try:
        handles += [sites[Site(point, "resid_pre")].attach(keep(point)) for point in points]
        yield found
    finally:
        for handle in handles:
            handle.remove()
