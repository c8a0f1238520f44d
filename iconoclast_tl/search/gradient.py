"""The search by gradient: one pass that traces the whole front of behaviour and KL.

1. Families (directions × plain or affine) are screened in one batch at strength 1; a few are left.
2. Those compete for some steps of Adam, in one batch; the best is left, without the first layers that do not matter.
3. The price w runs over a geometric grid, each price starting from the strengths of the one before: from the middle of
   the grid, where the competition left off, to looser prices until the behaviour is gone, or val gains nothing more;
   then from the middle to stricter ones until it is back. After every price the model is asked what it now says
   (`Solver.point`).

What is known is handed to `keep` after the competition and after every price; a search that was stopped goes on there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.models.resumption import resumes
from iconoclast_tl.prompts.chat import left_pad
from iconoclast_tl.search.families import Family
from iconoclast_tl.search.solver import Losses, Solver, Theta, screen
from iconoclast_tl.search.trace import Point, Trace

STARTS = 8
"""First layers that are tried, at most."""
SPARED = 0.01
"""Share of what an edit gains that is given up for not running the first layers."""
BACK = 0.9
"""Share of the base's missing the goal at which the behaviour is back: stricter prices leave nothing of the edit."""
NOTHING = 0.05
"""KL, as a share of what a typical direction costs at strength 1, below which hardly any strength is left."""
LEAST_POINTS = 3
"""Points of every trace, if the grid has as many: fewer make no front, and no rank correlation."""

Say = Callable[[str], None]
Keep = Callable[[Trace], None]
OnVal = Callable[[Mapping[str, Any]], float]
"""The share of val target prompts at which the edit of these parameters misses the goal."""


class GradientSearch:
    """One search: a solver, and whom to tell and to ask."""

    def __init__(
        self,
        solver: Solver,
        say: Say = lambda line: None,
        on_val: OnVal = lambda parameters: 0.0,
        keep: Keep = lambda trace: None,
    ) -> None:
        self._solver, self._say, self._on_val, self._keep = solver, say, on_val, keep
        self._proxy, self._config = solver.proxy, solver.config

    def run(self, families: Sequence[Family], trace: Trace | None = None, track: Track = silent) -> Trace:
        """The traced front, or the rest of one that was begun with the same settings and families."""
        if trace is None:
            trace = self._begin(families, track)
            self._keep(trace)
        else:
            self._say(f"going on from {len(trace.points)} points")
            self._proxy.paths.load(trace.paths)
        family = next((one for one in families if one.parameters == trace.family), None)
        if family is None:
            raise UserError(
                "the search that is kept chose a kind of edit that is not asked for any more",
                got=str(dict(trace.family)),
                mend="set fold.merge and edit.affine as they were, or pass another --out",
            )
        self._start_at(trace.layer)
        self._say(f"direction: {family}; edited from layer {trace.layer}")
        self._walk_both(family, trace, track)
        if not trace.points:
            raise UserError("no strengths gave a finite loss", mend="load the model in a wider --dtype")
        trace.done = True
        self._keep(trace)
        return trace

    # Before the trace -------------------------------------------------------------------------------------------------

    def _begin(self, families: Sequence[Family], track: Track) -> Trace:
        survivors, unit = self._screen(families)
        best, theta = self._compete(survivors, self._middle_price(unit), track)
        layer = self._first_layer(best, theta, self._prices(unit)[-1])
        return Trace(best.parameters, theta[0].tolist(), layer, unit, self._proxy.paths.to_json())

    def _screen(self, families: Sequence[Family]) -> tuple[list[Family], float]:
        """The families of least loss at strength 1 (−1 to strengthen), and the unit of prices."""
        screened = screen(self._solver, families)
        losses = self._solver.loss(screened.measures, self._middle_price(screened.unit))
        order = self._finite(families, losses)
        return [families[i] for i in order[: self._config.survivors]], screened.unit

    def _finite(self, families: Sequence[Family], losses: Losses) -> list[int]:
        """Those whose loss is finite, least loss first; the others are named."""
        for i, loss in enumerate(losses.tolist()):
            if not math.isfinite(loss):
                self._say(f"{families[i]} gives a loss that is not finite and is dropped")
        order = finite_by_rise(losses)
        if not order:
            raise UserError("no candidate direction gives a finite loss", mend="load the model in a wider --dtype")
        return order

    def _compete(self, families: Sequence[Family], price: float, track: Track) -> tuple[Family, Theta]:
        """Some steps of Adam for every survivor, in one batch, half of them dropped halfway: the best, its numbers."""
        left, theta = list(families), self._solver.profile.start(len(families))
        losses = torch.zeros(len(families))
        steps = self._config.refine_steps
        rounds = [steps // 2, steps - steps // 2] if len(left) > 1 else [steps]
        for number, n in enumerate(track(rounds, "search: compete", len(rounds))):
            if not n:
                continue
            theta, losses = self._solver.descend(left, theta, price, n, before=losses)
            finite = theta.isfinite().all(-1).all(-1)
            order = self._finite(left, torch.where(finite, losses, math.nan))
            kept = order[: 1 if number == len(rounds) - 1 else math.ceil(len(left) / 2)]
            left, theta, losses = [left[i] for i in kept], theta[kept], losses[kept]
        return left[0], theta[:1]

    def _first_layer(self, family: Family, theta: Theta, price: float) -> int:
        """The last layer below which strengths can be 0 for hardly any loss, at the price that cares most for the goal.

        Layers below it are never run again.
        """
        solver, n_layers = self._solver, self._solver.profile.n_layers
        starts = range(0, n_layers, math.ceil(n_layers / STARTS))
        strengths = torch.cat([solver.profile.strengths(theta, layer) for layer in (*starts, n_layers)])
        prompts = solver.draw(2 * self._config.batch_size)
        measures = solver.measure([family] * len(strengths), strengths, *prompts)
        *losses, unedited = solver.loss(measures, price).tolist()
        return starts[last_near_least(losses, unedited, SPARED)]

    def _start_at(self, layer: int) -> None:
        """Run the layers from `layer` on only, where the model can be started there."""
        model = self._proxy.base.model
        if layer and not resumes(model, left_pad(self._proxy.target.rows[:2], model.pad_id), layer):
            self._say(f"{type(model.hf).__name__} cannot be started at layer {layer}; running all layers")
            layer = 0
        self._proxy.start_at(layer)

    # The trace --------------------------------------------------------------------------------------------------------

    def _walk_both(self, family: Family, trace: Trace, track: Track) -> None:
        """From the middle of the grid to both its ends."""
        prices = self._prices(trace.unit)
        middle = len(prices) // 2
        looser = list(enumerate(prices))[middle:]
        stricter = list(enumerate(prices))[:middle][::-1]
        self._walk(family, trace, trace.loose, trace.numbers, looser, track, "search: looser prices")
        if trace.loose:
            numbers = trace.loose[0].numbers
            self._walk(family, trace, trace.strict, numbers, stricter, track, "search: stricter prices")

    def _walk(
        self,
        family: Family,
        trace: Trace,
        found: list[Point],
        start: Sequence[Any],
        prices: Sequence[tuple[int, float]],
        track: Track,
        description: str,
    ) -> None:
        """From one price to the next, appending to `found`; where it ends depends on the points alone."""
        for number, price in track(prices[len(found) :], description, len(prices) - len(found)):
            if self._is_over(trace, found):
                return
            self._solver.reseed(number)
            theta, dearer = torch.tensor([start]), 1.0
            if found:
                # Responses that fell apart raise the price.
                theta, dearer = self._onward(found[-1], trace.unit), 1 + found[-1].said.broken_rate
            theta, losses = self._solver.descend([family], theta, price * dearer, self._config.steps, trace.layer)
            if not bool(losses.isfinite().all()) or not bool(theta.isfinite().all()):
                self._say(f"the loss is not finite at price {price:g}; the trace ends there")
                return
            point = self._solver.point(family, theta, price, trace.layer)
            if found is trace.loose and self._solver.shortfall(point.said.behaviour_rate) == 0:
                point = replace(point, val_missed=self._on_val(point.parameters))
            found.append(point)
            trace.paths = self._proxy.paths.to_json()
            self._keep(trace)

    def _onward(self, point: Point, unit: float) -> Theta:
        """The numbers from which the next price starts."""
        if point.proxy_kl * unit < NOTHING:
            # At strength 0 the KL is flat and odds hardly move: Adam would not come back from there.
            return self._solver.profile.start(1)
        return torch.tensor([point.numbers])

    def _is_over(self, trace: Trace, found: Sequence[Point]) -> bool:
        if not found:
            return False
        if found is trace.loose:
            return nothing_more_on_val(found)
        shows = self._proxy.base.shows["target"]
        base = self._solver.shortfall(sum(shows) / len(shows))
        back = self._solver.shortfall(found[-1].proxy_rate) >= BACK * base
        return back and len(trace.points) >= LEAST_POINTS

    # Prices -----------------------------------------------------------------------------------------------------------

    def _prices(self, unit: float) -> list[float]:
        strict, loose, n = self._config.prices
        return [unit * strict * (loose / strict) ** (i / max(n - 1, 1)) for i in range(n)]

    def _middle_price(self, unit: float) -> float:
        strict, loose, _ = self._config.prices
        return unit * math.sqrt(strict * loose)


def finite_by_rise(losses: Losses) -> list[int]:
    """The candidates whose loss is finite, least loss first."""
    return sorted((i for i, loss in enumerate(losses.tolist()) if math.isfinite(loss)), key=lambda i: float(losses[i]))


def nothing_more_on_val(points: Sequence[Point]) -> bool:
    """Whether looser prices only cost: no train prompt misses the goal, and val ones do not become fewer."""
    *before, now = [1.0, *(point.val_missed for point in points if point.val_missed is not None)]
    return points[-1].val_missed is not None and (now == 0 or now >= min(before))


def last_near_least(losses: Sequence[float], unedited: float, share: float) -> int:
    """The last index at which at most this share of the largest gain over `unedited` is lost; 0 where nothing gains."""
    finite = [loss if math.isfinite(loss) else math.inf for loss in losses]
    least = min(finite)
    if not least < unedited:
        return 0
    return max(i for i, loss in enumerate(finite) if loss <= least + share * (unedited - least))
