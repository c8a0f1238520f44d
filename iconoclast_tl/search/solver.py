"""The inner problem of every search by gradient: the loss of strengths at a price of the KL, and Adam on it.

    loss = softplus(log-odds of the behaviour + margin) + w · KL(base ‖ edited) + smoothness          (suppress)
    loss = softplus(margin − log-odds of the behaviour) + …                                          (strengthen)

Adam moves strengths through the preview's own hooks, the model frozen, many candidates in one batch. The two terms are
differentiated one after the other, and each in parts where memory runs out: gradients add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from iconoclast_tl.edits.hooks import hooked
from iconoclast_tl.execution.batching import Room
from iconoclast_tl.execution.candidates import BatchCandidates
from iconoclast_tl.search.config import GradientConfig
from iconoclast_tl.search.families import Family, Strengths, stack_families, with_strengths
from iconoclast_tl.search.objective import Goal
from iconoclast_tl.search.profile import Profile
from iconoclast_tl.search.proxy import Proxy
from iconoclast_tl.search.seeds import derived_seed
from iconoclast_tl.search.trace import Point

SCREENED = 8
"""Prompts of each side on which families are screened."""
LEAST_KL = 1e-6
"""Nats; a typical direction that costs less than rounding has no price."""

Theta = Float[Tensor, "candidate row numbers"]
Losses = Float[Tensor, "candidate"]
Targets = Int[Tensor, "n"]
Neutrals = Int[Tensor, "m"]


@dataclass(frozen=True)
class Measures:
    """Of some prompts under every candidate."""

    odds: Float[Tensor, "candidate n"]
    kl: Float[Tensor, "candidate m"]


class Solver:
    """Measures losses, takes Adam steps on strengths, and scores the points at which they end."""

    def __init__(self, proxy: Proxy, goal: Goal, config: GradientConfig, seed: int, n_heads: int = 1) -> None:
        """n_heads: more than 1 where every head has a strength of its own."""
        self.proxy, self.goal, self.config = proxy, goal, config
        self.profile = Profile(config, goal, proxy.base.model.n_layers, n_heads)
        self._seed, self._random = seed, torch.Generator().manual_seed(seed)
        self._room = Room(config.batch_size)
        # What is kept for the way back grows with the rows. A processor gains nothing from more than a batch of them.
        self._candidates = Room(1 if proxy.base.model.device.type == "cpu" else 64)

    def reseed(self, *numbers: int) -> None:
        """Draw prompts from now on by (seed, numbers) alone, whatever was drawn before."""
        self._random.manual_seed(derived_seed(self._seed, *numbers))

    def draw(self, n: int) -> tuple[Targets, Neutrals]:
        """n target and n neutral prompts, or as many as there are."""
        sizes = (len(self.proxy.target.rows), len(self.proxy.neutral.rows))
        targets, neutrals = (torch.randperm(size, generator=self._random)[:n].sort().values for size in sizes)
        return targets, neutrals

    @torch.no_grad()
    def measure(
        self, families: Sequence[Family], strengths: Strengths, targets: Targets, neutrals: Neutrals
    ) -> Measures:
        """Of many candidates, as many rows at once as the evaluation's batches have room for."""
        proxy, rows = self.proxy, self.proxy.base.config.batch_rows

        def ask(part: Tensor) -> Measures:
            chosen, n = [families[c] for c in part.tolist()], len(part)
            with hooked(stack_families(chosen, strengths[part]), proxy.sites) as assigned:
                room = Room(max(rows // n, 1))
                odds = room.over(targets, lambda prompts: proxy.log_odds(assigned, prompts, n))
                kl = room.over(neutrals, lambda prompts: proxy.kl(assigned, prompts, n))
                return Measures(torch.cat(odds, 1), torch.cat(kl, 1))

        candidates = Room(max(rows // max(len(targets), len(neutrals)), 1))
        found = candidates.over(torch.arange(len(families)), ask)
        return Measures(torch.cat([one.odds for one in found]), torch.cat([one.kl for one in found]))

    def loss(self, measures: Measures, price: float) -> Losses:
        """Without the smoothness, which is no measure."""
        return self._missed(measures.odds).mean(-1).float() + price * measures.kl.mean(-1)

    def gradient(self, families: Sequence[Family], theta: Theta, price: float, layer: int) -> tuple[Losses, Theta]:
        """The loss of every candidate on a batch of prompts that are drawn, and its gradient in θ."""
        prompts = self.draw(self.config.batch_size)

        def of(part: Tensor) -> tuple[Losses, Theta]:
            chosen = [families[c] for c in part.tolist()]
            return self._gradient(chosen, theta[part].detach().requires_grad_(), price, layer, *prompts)

        losses, gradients = zip(*self._candidates.over(torch.arange(len(families)), of), strict=True)
        return torch.cat(losses), torch.cat(gradients)

    def _gradient(
        self, families: Sequence[Family], theta: Theta, price: float, layer: int, targets: Targets, neutrals: Neutrals
    ) -> tuple[Losses, Theta]:
        proxy, n = self.proxy, len(families)
        losses, gradient = torch.zeros(n), torch.zeros_like(theta)

        def add(loss: Losses) -> None:
            (part,) = torch.autograd.grad(loss.sum(), theta)
            gradient.add_(part)
            losses.add_(loss.detach())  # last: where memory runs out above, all of this is done again

        def differentiate(
            prompts: Tensor, term: Callable[[BatchCandidates, Tensor], Float[Tensor, "candidate part"]]
        ) -> None:
            def work(part: Tensor) -> None:
                with hooked(stack_families(families, self.profile.strengths(theta, layer)), proxy.sites) as assigned:
                    loss = term(assigned, part).float().sum(-1).cpu() / len(prompts)
                add(loss)

            self._room.over(prompts, work)

        differentiate(targets, lambda assigned, part: self._missed(proxy.log_odds(assigned, part, n)))
        differentiate(neutrals, lambda assigned, part: price * proxy.kl(assigned, part, n))
        steps = self.profile.strengths(theta, layer)[..., layer:].diff(dim=-1)
        if self.config.smoothness and steps.shape[-1]:
            add(self.config.smoothness * steps.square().mean((1, 2)))
        return losses, gradient

    def descend(
        self,
        families: Sequence[Family],
        theta: Theta,
        price: float,
        steps: int,
        layer: int = 0,
        before: Losses | None = None,
    ) -> tuple[Theta, Losses]:
        """θ after some steps of Adam on every candidate by itself, and its losses, each worth half of the next.

        before: such losses of steps that went before. Where no candidate's loss is finite it ends at once.
        """
        theta = theta.clone().requires_grad_()
        recent = torch.zeros(len(families)) if before is None else before
        optimizer = torch.optim.Adam([theta], lr=self.config.learning_rate)
        for _ in range(steps):
            losses, theta.grad = self.gradient(families, theta, price, layer)
            recent = recent / 2 + losses
            if not bool(recent.isfinite().any()):
                break
            optimizer.step()
            self.profile.clamp_(theta)
        return theta.detach(), recent

    @torch.no_grad()
    def compare(self, families: Sequence[Family], theta: Theta, price: float) -> Losses:
        """The loss of each on all prompts, after it was generated from and its responses were learned from.

        A response that fell apart counts like one at even odds.
        """
        proxy, strengths = self.proxy, self.profile.strengths(theta)
        learned, broken = 0, list[float]()
        for family, own in zip(families, strengths, strict=True):
            with hooked(stack_families([family], own[None]), proxy.sites) as assigned:
                said = proxy.refresh(assigned)
            learned += said.learned
            broken.append(said.broken_rate)
        if learned:
            proxy.settle()
        everything = (torch.arange(len(questions.rows)) for questions in (proxy.target, proxy.neutral))
        losses = self.loss(self.measure(families, strengths, *everything), price)
        return losses + torch.tensor(broken) * softplus(torch.tensor(self.config.margin))

    @torch.no_grad()
    def point(self, family: Family, theta: Theta, price: float, layer: int = 0) -> Point:
        """Generate under this edit, learn from the responses, and score the edit on all prompts."""
        proxy, strengths = self.proxy, self.profile.strengths(theta, layer)
        with hooked(stack_families([family], strengths), proxy.sites) as assigned:
            said = proxy.refresh(assigned)
        if said.learned:
            proxy.settle()
        everything = (torch.arange(len(questions.rows)) for questions in (proxy.target, proxy.neutral))
        measured = self.measure([family], strengths, *everything)
        rate, kl = float(measured.odds.sigmoid().mean()), float(measured.kl.mean())
        return Point(
            spec=with_strengths(family, strengths[0]),
            numbers=theta[0].tolist(),
            price=price,
            proxy_rate=rate,
            proxy_kl=kl,
            said=said,
        )

    def shortfall(self, rate: float) -> float:
        """How far a behaviour rate is from the goal."""
        return rate if self.goal == "suppress" else 1 - rate

    def _missed(self, odds: Tensor) -> Tensor:
        return softplus((odds if self.goal == "suppress" else -odds) + self.config.margin)


@dataclass(frozen=True)
class Screened:
    """Families at a few strengths, 1 first (−1 first to strengthen), on the same few prompts."""

    measures: Sequence[Measures]
    unedited: Measures
    """Of the base."""
    unit: float
    """Of prices: one over the KL that a typical direction costs at strength 1. NaN where no KL is a number."""

    def losses(self, solver: Solver, price: float) -> Losses:
        """Of each family, at the strength at which it is less; NaN where it is no number at any."""
        least = solver.loss(self.measures[0], price)
        for measured in self.measures[1:]:
            least = torch.fmin(least, solver.loss(measured, price))
        return least


def screen(solver: Solver, families: Sequence[Family], strengths: Sequence[float] = (1.0,)) -> Screened:
    """Measure these families on a few prompts, at strength 1 and whichever else."""
    ones, prompts = solver.profile.ones(len(families)), solver.draw(SCREENED)
    measures = [solver.measure(families, strength * ones, *prompts) for strength in strengths]
    unedited = solver.measure(families[:1], 0 * ones[:1], *prompts)
    typical = float(measures[0].kl.mean(-1).nanmedian())
    unit = 1 / max(typical, LEAST_KL) if math.isfinite(typical) else math.nan
    return Screened(measures, unedited, unit)
