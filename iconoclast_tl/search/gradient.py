"""Search by gradient: Adam on the strengths, through the preview's own hooks, the model frozen.

    loss = softplus(log-odds of the behaviour + margin) + w · KL(base ‖ edited) + smoothness          (suppress)
    loss = softplus(margin − log-odds of the behaviour) + …                                          (strengthen)

1. Families (directions × plain or affine) are screened in one batch at strength 1; a few are left.
2. Those compete for some steps of Adam, in one batch; the best is left, without the layers that do not matter.
3. The price w falls over a geometric grid, strict to loose, each price starting from the strengths of the one before:
   one pass traces the front. After every price the model is asked what it now says (`Proxy.refresh`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from iconoclast_tl.edits.hooks import hooked
from iconoclast_tl.edits.profiles import kernel_strengths
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.models.resumption import resumes
from iconoclast_tl.models.sites import WRITERS
from iconoclast_tl.prompts.chat import left_pad
from iconoclast_tl.search.config import GradientConfig
from iconoclast_tl.search.families import Family, stack_families, with_strengths
from iconoclast_tl.search.objective import Goal
from iconoclast_tl.search.proxy import Proxy, Said

SCREENED = 8
"""Prompts of each side on which families are screened."""
NEGLIGIBLE = 0.05
"""Share of the gradient below the first edited layer that is given up for not running those layers."""
DONE = 0.003
"""Mean probability of missing the goal below which looser prices can only cost."""

LEAST_KL = 1e-6
"""Nats; a typical direction that costs less than rounding has no price."""
LEAST_POINTS = 3
"""Points of every trace: fewer make no front, and no rank correlation."""
NOTHING = 0.05
"""KL, as a share of what a typical direction costs at strength 1, below which hardly any strength is left: the next
price then starts from where the trace started."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Point:
    """Where the trace stood at the end of one price."""

    parameters: dict[str, Any]
    """Of an edit."""
    price: float
    proxy_rate: float
    """Mean probability of the known ways into the behaviour, on train prompts."""
    proxy_kl: float
    said: Said
    """What a generation from the train prompts showed there."""


@dataclass(frozen=True)
class _Measures:
    odds: Float[Tensor, "candidate n"]
    kl: Float[Tensor, "candidate m"]


class GradientSearch:
    """One search: a proxy, a goal, settings and a seed."""

    def __init__(
        self, proxy: Proxy, goal: Goal, config: GradientConfig, seed: int, say: Say = lambda line: None
    ) -> None:
        self._proxy, self._goal, self._config, self._say = proxy, goal, config, say
        self._random = torch.Generator().manual_seed(seed)
        self._n_layers = proxy.model.n_layers
        self._unit = 1.0

    def run(self, families: Sequence[Family], track: Track = silent) -> list[Point]:
        """The points of the traced front, from strict to loose."""
        survivors = self._screen(families)
        best, theta, attribution = self._compete(survivors, track)
        layer = first_layer(attribution)
        if layer and resumes(self._proxy.model, left_pad(self._proxy.target.rows[:2], self._proxy.model.pad_id), layer):
            self._proxy.start_at(layer)
        elif layer:
            self._say(f"{type(self._proxy.model.hf).__name__} cannot be started at layer {layer}; running all layers")
        self._say(f"direction: {best}; edited from layer {layer}")
        return self._trace(best, theta, layer, track)

    # Stages -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _screen(self, families: Sequence[Family]) -> list[Family]:
        """The families of least loss at strength 1 (−1 to strengthen), scored in batches of many."""
        prompts, per_batch = self._draw(SCREENED), max(self._config.batch_size * 16 // SCREENED, 1)
        found: list[_Measures] = []
        for start in range(0, len(families), per_batch):
            part = families[start : start + per_batch]
            strengths = torch.full((len(part), len(WRITERS), self._n_layers), self._sign)
            found.append(self._measure(part, strengths, *prompts))
        measured = _Measures(torch.cat([one.odds for one in found]), torch.cat([one.kl for one in found]))
        self._unit = 1 / max(float(measured.kl.mean(-1).nanmedian()), LEAST_KL)
        losses: list[float] = self._loss(measured, self._middle_price()).tolist()
        finite = [(loss, i) for i, loss in enumerate(losses) if math.isfinite(loss)]
        for i, loss in enumerate(losses):
            if not math.isfinite(loss):
                self._say(f"{families[i]} gives a loss that is not finite and is dropped")
        if not finite:
            raise UserError("no candidate direction gives a finite loss", mend="load the model in a wider --dtype")
        return [families[i] for _, i in sorted(finite)[: self._config.survivors]]

    def _compete(self, families: Sequence[Family], track: Track) -> tuple[Family, Tensor, Float[Tensor, "layer"]]:
        """Some steps of Adam for every survivor, in one batch: the best, its numbers, how much each layer matters."""
        theta = self._start(len(families)).requires_grad_()
        optimizer = torch.optim.Adam([theta], lr=self._config.learning_rate)
        attribution = torch.zeros(len(families), self._n_layers)
        price, recent = self._middle_price(), torch.zeros(len(families))
        steps = range(max(self._config.refine_steps, 1))
        for step in track(steps, "search: compete", len(steps)):
            strengths = self._strengths(theta)
            strengths.retain_grad()
            measured = self._measure(families, strengths, *self._draw(self._config.batch_size))
            loss = self._loss(measured, price)
            optimizer.zero_grad()
            torch.autograd.backward(loss.sum())
            assert strengths.grad is not None
            attribution += strengths.grad.abs().sum(1)
            if self._config.refine_steps:
                optimizer.step()
                self._bound(theta)
            recent = 0.5 * recent + loss.detach() if step else loss.detach()
        best = int(torch.where(recent.isfinite(), recent, torch.inf).argmin())
        return families[best], theta.detach()[best : best + 1].clone(), attribution[best]

    def _trace(self, family: Family, theta: Tensor, layer: int, track: Track) -> list[Point]:
        points: list[Point] = []
        prices, broken = self._prices(), 0.0
        started, theta = theta, theta.clone().requires_grad_()
        for price in track(prices, "search: trace the front", len(prices)):
            optimizer = torch.optim.Adam([theta], lr=self._config.learning_rate)
            for _ in range(self._config.steps):
                strengths = self._strengths(theta, layer)
                measured = self._measure([family], strengths, *self._draw(self._config.batch_size))
                # Responses that fell apart raise the price.
                loss = self._loss(measured, price * (1 + broken)).sum() + self._roughness(strengths)
                if not math.isfinite(float(loss.detach())):
                    self._say(f"the loss is not finite at price {price:g}; the trace ends there")
                    return points
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                self._bound(theta)
            points.append(self._point(family, self._strengths(theta.detach(), layer), price))
            broken = points[-1].said.broken_rate
            if points[-1].proxy_kl * self._unit < NOTHING:
                # At strength 0 the KL is flat and odds hardly move: Adam would not come back from there.
                theta = started.clone().requires_grad_()
            if self._missing(points[-1]) < DONE and len(points) >= LEAST_POINTS:
                break
        return points

    @torch.no_grad()
    def _point(self, family: Family, strengths: Tensor, price: float) -> Point:
        proxy, (targets, neutrals) = self._proxy, self._everything()
        with hooked(stack_families([family], strengths), proxy.sites) as assigned:
            said = proxy.refresh(assigned)
        if said.learned:
            proxy.settle()
        measured = self._measure([family], strengths, targets, neutrals)
        rate, kl = float(measured.odds.sigmoid().mean()), float(measured.kl.mean())
        return Point(with_strengths(family, strengths[0]), price, rate, kl, said)

    # Loss -------------------------------------------------------------------------------------------------------------

    def _measure(self, families: Sequence[Family], strengths: Tensor, targets: Tensor, neutrals: Tensor) -> _Measures:
        proxy, n = self._proxy, len(families)
        with hooked(stack_families(families, strengths), proxy.sites) as assigned:
            return _Measures(proxy.log_odds(assigned, targets, n), proxy.kl(assigned, neutrals, n))

    def _loss(self, measured: _Measures, price: float) -> Float[Tensor, "candidate"]:
        odds = measured.odds if self._goal == "suppress" else -measured.odds
        missed = softplus(odds + self._config.margin).mean(-1)
        return missed.float() + price * measured.kl.mean(-1)

    def _roughness(self, strengths: Tensor) -> Tensor:
        return self._config.smoothness * strengths.diff(dim=-1).square().mean()

    def _missing(self, point: Point) -> float:
        return point.proxy_rate if self._goal == "suppress" else 1 - point.proxy_rate

    # Strengths --------------------------------------------------------------------------------------------------------

    @property
    def _sign(self) -> float:
        return 1.0 if self._goal == "suppress" else -1.0

    def _start(self, n: int) -> Tensor:
        """Half strength everywhere; as a kernel, a peak of that height over all layers."""
        half = 0.5 * self._sign
        if self._config.profile == "free":
            return torch.full((n, len(WRITERS), self._n_layers), half)
        last = max(self._n_layers - 1, 1)
        return torch.tensor([half, 0.6 * last, half, float(last)]).expand(n, len(WRITERS), 4).clone()

    def _strengths(self, theta: Tensor, layer: int = 0) -> Tensor:
        values = theta if self._config.profile == "free" else kernel_strengths(theta, self._n_layers)
        kept = (torch.arange(self._n_layers) >= layer).to(values)
        return values * kept

    @torch.no_grad()
    def _bound(self, theta: Tensor) -> None:
        bound, both = self._config.bound, self._config.allow_negative
        low, high = (-bound if both or self._sign < 0 else 0.0), (bound if both or self._sign > 0 else 0.0)
        if self._config.profile == "free":
            theta.clamp_(low, high)
            return
        last = float(self._n_layers - 1)
        for number, (least, most) in enumerate([(low, high), (0.0, last), (low, high), (1.0, max(last, 1.0))]):
            theta[..., number].clamp_(least, most)

    # Prices and prompts -----------------------------------------------------------------------------------------------

    def _prices(self) -> list[float]:
        strict, loose, n = self._config.prices
        return [self._unit * strict * (loose / strict) ** (i / max(n - 1, 1)) for i in range(n)]

    def _middle_price(self) -> float:
        strict, loose, _ = self._config.prices
        return self._unit * math.sqrt(strict * loose)

    def _draw(self, n: int) -> tuple[Tensor, Tensor]:
        sizes = (len(self._proxy.target.rows), len(self._proxy.neutral.rows))
        targets, neutrals = (torch.randperm(size, generator=self._random)[:n].sort().values for size in sizes)
        return targets, neutrals

    def _everything(self) -> tuple[Tensor, Tensor]:
        return torch.arange(len(self._proxy.target.rows)), torch.arange(len(self._proxy.neutral.rows))


def first_layer(attribution: Float[Tensor, "layer"]) -> int:
    """The last layer below which lies at most `NEGLIGIBLE` of the gradient; 0 where there is no gradient at all."""
    total = float(attribution.sum())
    return int((attribution.cumsum(0) <= NEGLIGIBLE * total).sum()) if total > 0 else 0
