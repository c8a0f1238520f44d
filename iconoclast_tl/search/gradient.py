"""Search by gradient: Adam on the strengths, through the preview's own hooks, the model frozen.

    loss = softplus(log-odds of the behaviour + margin) + w · KL(base ‖ edited) + smoothness          (suppress)
    loss = softplus(margin − log-odds of the behaviour) + …                                          (strengthen)

1. Families (directions × plain or affine) are screened in one batch at strength 1; a few are left.
2. Those compete for some steps of Adam, in one batch; the best is left, without the first layers that do not matter.
3. The price w runs over a geometric grid, each price starting from the strengths of the one before: from the middle of
   the grid, where the competition left off, to looser prices until the behaviour is gone, or val gains nothing more;
   then from the middle to stricter ones until it is back. After every price the model is asked what it now says
   (`Proxy.refresh`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
STARTS = 8
"""First layers that are tried, at most."""
SPARED = 0.01
"""Share of what an edit gains that is given up for not running the first layers."""
BACK = 0.9
"""Share of the base's missing the goal at which the behaviour is back: stricter prices leave nothing of the edit."""
LEAST_KL = 1e-6
"""Nats; a typical direction that costs less than rounding has no price."""
NOTHING = 0.05
"""KL, as a share of what a typical direction costs at strength 1, below which hardly any strength is left."""
LEAST_POINTS = 3
"""Points of every trace, if the grid has as many: fewer make no front, and no rank correlation."""

Say = Callable[[str], None]
OnVal = Callable[[Mapping[str, Any]], float]
"""The share of val target prompts at which the edit of these parameters misses the goal."""


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
        self,
        proxy: Proxy,
        goal: Goal,
        config: GradientConfig,
        seed: int,
        say: Say = lambda line: None,
        on_val: OnVal = lambda parameters: 0.0,
    ) -> None:
        self._proxy, self._goal, self._config, self._say, self._on_val = proxy, goal, config, say, on_val
        self._random = torch.Generator().manual_seed(seed)
        self._n_layers = proxy.base.model.n_layers
        self._unit, self._least_on_val = 1.0, 1.0

    def run(self, families: Sequence[Family], track: Track = silent) -> list[Point]:
        """The points of the traced front, from strict to loose."""
        survivors = self._screen(families)
        best, theta = self._compete(survivors, track)
        layer, model = self._first_layer(best, theta), self._proxy.base.model
        if layer and resumes(model, left_pad(self._proxy.target.rows[:2], model.pad_id), layer):
            self._proxy.start_at(layer)
        elif layer:
            self._say(f"{type(model.hf).__name__} cannot be started at layer {layer}; running all layers")
        self._say(f"direction: {best}; edited from layer {layer}")
        return self._trace(best, theta, layer, track)

    # Stages -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _screen(self, families: Sequence[Family]) -> list[Family]:
        """The families of least loss at strength 1 (−1 to strengthen), scored in batches of many."""
        strengths = torch.full((len(families), len(WRITERS), self._n_layers), self._sign)
        measured = self._measure_all(families, strengths, *self._draw(SCREENED))
        self._unit = 1 / max(float(measured.kl.mean(-1).nanmedian()), LEAST_KL)
        losses: list[float] = self._loss(measured, self._middle_price()).tolist()
        finite = [(loss, i) for i, loss in enumerate(losses) if math.isfinite(loss)]
        for i, loss in enumerate(losses):
            if not math.isfinite(loss):
                self._say(f"{families[i]} gives a loss that is not finite and is dropped")
        if not finite:
            raise UserError("no candidate direction gives a finite loss", mend="load the model in a wider --dtype")
        return [families[i] for _, i in sorted(finite)[: self._config.survivors]]

    def _compete(self, families: Sequence[Family], track: Track) -> tuple[Family, Tensor]:
        """Some steps of Adam for every survivor, in one batch, half of them dropped halfway: the best, its numbers."""
        steps = max(self._config.refine_steps, 1)
        theta, left = self._start(len(families)).requires_grad_(), list(families)
        optimizer = torch.optim.Adam([theta], lr=self._config.learning_rate)
        recent = torch.zeros(len(families))
        for step in track(range(steps), "search: compete", steps):
            if step == steps // 2 > 0 and len(left) > 1:
                kept = recent.nan_to_num(math.inf).argsort(stable=True)[: math.ceil(len(left) / 2)]
                left, recent = [left[i] for i in kept.tolist()], recent[kept]
                theta = theta.detach()[kept].requires_grad_()
                optimizer = torch.optim.Adam([theta], lr=self._config.learning_rate)
            measured = self._measure(left, self._strengths(theta), *self._draw(self._config.batch_size))
            loss = self._loss(measured, self._middle_price())
            if self._config.refine_steps:
                optimizer.zero_grad()
                torch.autograd.backward(loss.sum())
                optimizer.step()
                self._bound(theta)
            recent = 0.5 * recent + loss.detach() if step else loss.detach()
        best = int(recent.nan_to_num(math.inf).argmin())
        return left[best], theta.detach()[best : best + 1].clone()

    @torch.no_grad()
    def _first_layer(self, family: Family, theta: Tensor) -> int:
        """The last layer below which strengths can be 0 for hardly any loss, at the price that cares most for the goal.

        Layers below it are never run again.
        """
        starts = range(0, self._n_layers, math.ceil(self._n_layers / STARTS))
        strengths = torch.cat([self._strengths(theta, layer) for layer in (*starts, self._n_layers)])
        measured = self._measure_all([family] * len(strengths), strengths, *self._draw(2 * self._config.batch_size))
        *losses, unedited = self._loss(measured, self._prices()[-1]).tolist()
        return starts[last_near_least(losses, unedited, SPARED)]

    def _trace(self, family: Family, theta: Tensor, layer: int, track: Track) -> list[Point]:
        """From the middle of the grid to both its ends; strict to loose."""
        prices = self._prices()
        cheap, dear = prices[len(prices) // 2 :], prices[: len(prices) // 2][::-1]
        loose = self._walk(family, theta, layer, track(cheap, "search: looser prices", len(cheap)), self._is_gone)
        if not loose:
            return []
        stricter = track(dear, "search: stricter prices", len(dear))
        strict = self._walk(family, loose[0][1], layer, stricter, self._is_back, LEAST_POINTS - len(loose))
        return [point for point, _ in (*reversed(strict), *loose)]

    def _walk(
        self,
        family: Family,
        theta: Tensor,
        layer: int,
        prices: Iterable[float],
        ends: Callable[[Point], bool],
        at_least: int = 1,
    ) -> list[tuple[Point, Tensor]]:
        """From one price to the next: the points, and the numbers that made each."""
        found: list[tuple[Point, Tensor]] = []
        theta, broken = theta.clone().requires_grad_(), 0.0
        for price in prices:
            optimizer = torch.optim.Adam([theta], lr=self._config.learning_rate)
            for _ in range(self._config.steps):
                strengths = self._strengths(theta, layer)
                measured = self._measure([family], strengths, *self._draw(self._config.batch_size))
                # Responses that fell apart raise the price.
                loss = self._loss(measured, price * (1 + broken)).sum() + self._roughness(strengths)
                if not math.isfinite(float(loss.detach())):
                    self._say(f"the loss is not finite at price {price:g}; the trace ends there")
                    return found
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                self._bound(theta)
            point = self._point(family, self._strengths(theta.detach(), layer), price)
            found.append((point, theta.detach().clone()))
            broken = point.said.broken_rate
            if point.proxy_kl * self._unit < NOTHING:
                # At strength 0 the KL is flat and odds hardly move: Adam would not come back from there.
                theta = self._start(1).requires_grad_()
            if ends(point) and len(found) >= at_least:
                break
        return found

    def _is_gone(self, point: Point) -> bool:
        """Whether looser prices only cost: no train prompt misses the goal, and val ones do not become fewer."""
        if self._shortfall(point.said.behaviour_rate) > 0:
            return False
        now, before = self._on_val(point.parameters), self._least_on_val
        self._least_on_val = min(now, before)
        return now == 0 or now >= before

    def _is_back(self, point: Point) -> bool:
        """Whether the model misses the goal nearly as the base does."""
        shows = self._proxy.base.shows["target"]
        return self._shortfall(point.proxy_rate) >= BACK * self._shortfall(sum(shows) / len(shows))

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

    def _measure_all(
        self, families: Sequence[Family], strengths: Tensor, targets: Tensor, neutrals: Tensor
    ) -> _Measures:
        """Of many candidates without a gradient, as many at once as the evaluation's batches have room for."""
        n = max(self._proxy.base.config.batch_size // len(targets), 1)
        found = [
            self._measure(families[start : start + n], strengths[start : start + n], targets, neutrals)
            for start in range(0, len(families), n)
        ]
        return _Measures(torch.cat([one.odds for one in found]), torch.cat([one.kl for one in found]))

    def _loss(self, measured: _Measures, price: float) -> Float[Tensor, "candidate"]:
        odds = measured.odds if self._goal == "suppress" else -measured.odds
        missed = softplus(odds + self._config.margin).mean(-1)
        return missed.float() + price * measured.kl.mean(-1)

    def _roughness(self, strengths: Tensor) -> Tensor:
        return self._config.smoothness * strengths.diff(dim=-1).square().mean()

    def _shortfall(self, rate: float) -> float:
        return rate if self._goal == "suppress" else 1 - rate

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


def last_near_least(losses: Sequence[float], unedited: float, share: float) -> int:
    """The last index at which at most this share of the largest gain over `unedited` is lost; 0 where nothing gains."""
    finite = [loss if math.isfinite(loss) else math.inf for loss in losses]
    least = min(finite)
    if not least < unedited:
        return 0
    return max(i for i, loss in enumerate(finite) if loss <= least + share * (unedited - least))
