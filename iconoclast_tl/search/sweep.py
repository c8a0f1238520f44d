"""The price sweep of a search by gradient: one pass that traces the front of behaviour and KL, where it may be taken.

1. Families of every few residual points are screened at full and half strength; a few are left. They are compared at
   the middle of the price grid, or, where none is worth its KL there (of few heads, say), at a looser price, perhaps
   beyond the grid, which then goes on.
2. Those compete for some steps of Adam, in one batch, the worse half dropped on the way. The last ones are generated
   from and compared on all train prompts; the best goes on, without the first layers that do not matter.
3. The price w runs over a geometric grid, each price starting from the strengths of the one before: from where the
   competition left off to looser prices until the behaviour is gone, or one gains nothing; then from there to
   stricter ones, as long as no more prompts are missed than chance explains. After every price the edited model
   generates (`Solver.point`).
4. Where no price takes away half of what the base misses the goal by, the next best family is walked, too.

`keep` gets the trace after the competition and after every price; a search that was stopped continues from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from iconoclast_tl.execution.resumption import resumes
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Say, Track, silent, unheard
from iconoclast_tl.prompts.tokens import left_pad
from iconoclast_tl.search.families import Family, spread_out
from iconoclast_tl.search.pareto import WORSE
from iconoclast_tl.search.solver import SCREENED, Losses, Solver, Theta, screen
from iconoclast_tl.search.spec import EditSpec
from iconoclast_tl.search.trace import Finalist, Point, Trace, Walk
from iconoclast_tl.statistics.fisher import fisher_greater

SPREAD = 6
"""Residual points of each kind that are screened: directions of neighbouring points are nearly the same."""
STRENGTHS = (1.0, 0.5)
"""At which they are screened, the better of the two counting. At strength 1 everywhere every edit of a deep model costs
so much that the one that does least would win; of a few heads, half strength moves next to nothing."""
STARTS = 6
"""First layers that are tried, at most."""
SPARED = 0.01
"""Share of what an edit gains that is given up for not running the first layers."""
STUCK = 0.5
"""Share of the base's missing the goal that is left at the best price, above which another family is tried."""
NOTHING = 0.05
"""KL, as a share of what a typical direction costs at strength 1, below which hardly any strength is left."""
FURTHER = 2
"""How many times as long the grid may become at its loose end, where at its middle no family is worth its KL."""
WORTH = 0.9
"""Share of the loss of an edit that does nothing, under which one is worth its KL; what hardly moves is not."""
LEAST_POINTS = 3
"""Points of every trace, if the grid has as many: fewer make no front, and no rank correlation."""

Keep = Callable[[Trace], None]
OnVal = Callable[[EditSpec], float]
"""The share of val target prompts at which the edit misses the goal."""


class PriceSweep:
    """Runs the price sweep; reports progress through callbacks."""

    def __init__(
        self,
        solver: Solver,
        say: Say = unheard,
        on_val: OnVal = lambda spec: 0.0,
        keep: Keep = lambda trace: None,
    ) -> None:
        """say: takes lines for the user. on_val: measures an edit on val. keep: saves the trace after every price."""
        self._solver, self._say, self._on_val, self._keep = solver, say, on_val, keep
        self._proxy, self._config = solver.proxy, solver.config

    def run(self, families: Sequence[Family], trace: Trace | None = None, track: Track = silent) -> Trace:
        """The traced front, or the rest of one that was begun with the same settings and families."""
        if trace is None:
            trace = self._begin(families, track)
            self._keep(trace)
        else:
            self._say(f"continuing from {len(trace.points)} points")
            self._proxy.prefixes.load(trace.prefixes)
        for number, finalist in enumerate(trace.finalists):
            family = _named(families, finalist)
            walk = self._prepared(number, family, trace)
            self._say(f"tracing {family}; layers from {walk.layer} on are edited")
            self._walk_both(number, family, trace, track)
            if not self._is_stuck(walk):
                break
            if number + 1 < len(trace.finalists):
                self._say(f"{family}: at every weight most of the behaviour is left; tracing the next best direction")
        if not trace.points:
            raise UserError("no strengths gave a finite loss", mend="load the model in a wider --dtype")
        trace.done = True
        self._keep(trace)
        return trace

    # Before the trace -------------------------------------------------------------------------------------------------

    def _begin(self, families: Sequence[Family], track: Track) -> Trace:
        """Screen, then compete, at the first price at which an edit is worth anything.

        At a price at which every family loses more than it gains, the one that does least would win. So where none is
        worth its KL at the middle of the prices, the next looser ones are tried until the winner takes away half of
        what is missed.
        """
        families = spread_out(families, SPREAD)
        self._say(f"screening {len(families)} candidate edits at full and half strength")
        screened = screen(self._solver, families, STRENGTHS)
        unit = screened.unit
        places = range(self._middle, len(self._prices(1.0)))
        for place in places:
            price = self._start_price(unit, place)
            losses = screened.losses(self._solver, price)
            nothing = float(self._solver.loss(screened.unedited, price))
            if float(losses.nan_to_num(math.inf).min()) >= WORTH * nothing and place != places[-1]:
                continue
            order = self._finite(families, losses)
            survivors = [families[i] for i in order[: self._config.survivors]]
            finalists = self._compete(survivors, price, self._begin_at(len(survivors), place), track)
            if place == self._middle or self._moves(_named(families, finalists[0]), finalists[0], nothing):
                break
        if place != self._middle:
            middle = self._start_price(unit, self._middle)
            self._say(
                f"at a weight of {middle:.3g} the KL of every direction costs more than the edit gains; "
                f"the search begins at a weight of {price:.3g}, where edits may change neutral answers more"
            )
        return Trace(finalists, unit, self._proxy.prefixes.to_json(), start=place)

    def _begin_at(self, n: int, place: int) -> Theta:
        """Half strength, where a search begins in the middle of the prices. Elsewhere, where half of an edit moves next
        to nothing, strength 1.
        """
        return self._solver.profile.start(n, 0.5 if place == self._middle else 1.0)

    def _moves(self, family: Family, finalist: Finalist, nothing: float) -> bool:
        """Whether it takes away half of what is missed; `nothing`: the loss of an edit that does nothing."""
        strengths = self._solver.profile.strengths(torch.tensor([finalist.numbers]))
        measured = self._solver.measure([family], strengths, *self._solver.draw(SCREENED))
        return float(self._solver.loss(measured, 0.0)) <= STUCK * nothing

    def _finite(self, families: Sequence[Family], losses: Losses) -> list[int]:
        """Those whose loss is finite, least loss first; the others are named."""
        for i, loss in enumerate(losses.tolist()):
            if not math.isfinite(loss):
                self._say(f"{families[i]}: the loss is not finite; this direction is dropped")
        order = finite_by_rise(losses)
        if not order:
            raise UserError("no candidate direction gives a finite loss", mend="load the model in a wider --dtype")
        return order

    def _compete(self, families: Sequence[Family], price: float, theta: Theta, track: Track) -> list[Finalist]:
        """Some steps of Adam for every survivor, in one batch, half of them dropped on the way: the others, best first.

        A few prompts a step leave much to chance, so the last ones are compared on all of them.
        """
        left = list(families)
        self._say(f"comparing {len(left)} by gradient steps: {'; '.join(map(str, left))}")
        losses = torch.zeros(len(families))
        steps = self._config.refine_steps
        first = min(max(steps // 3, 1), steps)
        rounds = [first, steps - first] if len(left) > 1 else [steps]
        for number, n in enumerate(track(rounds, "search: compete", len(rounds))):
            if not n:
                continue
            theta, losses = self._solver.descend(left, theta, price, n, before=losses)
            finite = theta.isfinite().all(-1).all(-1)
            order = self._finite(left, torch.where(finite, losses, math.nan))
            kept = order if number == len(rounds) - 1 else order[: math.ceil(len(left) / 2)]
            left, theta, losses = [left[i] for i in kept], theta[kept], losses[kept]
        if len(left) > 1:
            order = finite_by_rise(self._solver.compare(left, theta, price)) or list(range(len(left)))
            left, theta = [left[i] for i in order], theta[order]
        return [Finalist(family.spec, numbers) for family, numbers in zip(left, theta.tolist(), strict=True)]

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

    def _prepared(self, number: int, family: Family, trace: Trace) -> Walk:
        """The walk of this number, begun where it was not, and the model ready for it."""
        if number == len(trace.walks):
            last = self._config.prices[2] - 1
            price = self._prices(trace.unit)[max(last, self._start(trace))]
            self._proxy.start_at(0)
            self._solver.reseed(number, last + 1)
            theta = torch.tensor([trace.finalists[number].numbers])
            trace.walks.append(Walk(self._first_layer(family, theta, price)))
            self._keep(trace)
        walk = trace.walks[number]
        self._start_at(walk.layer)
        return walk

    def _walk_both(self, number: int, family: Family, trace: Trace, track: Track) -> None:
        """From where it starts in the grid to both its ends; to the strict one only where its start may be taken."""
        prices, walk = self._prices(trace.unit), trace.walks[number]
        start = self._start(trace)
        looser = list(enumerate(prices))[start:]
        stricter = list(enumerate(prices))[:start][::-1]
        numbers = trace.finalists[number].numbers
        self._walk(number, family, trace, walk.loose, numbers, looser, track, "search: looser prices")
        # Of the loose points alone, so that a search that goes on from strict ones decides alike.
        if walk.loose and not (self._is_back(walk.loose[0], walk.loose) and len(walk.loose) >= LEAST_POINTS):
            numbers = walk.loose[0].numbers
            self._walk(number, family, trace, walk.strict, numbers, stricter, track, "search: stricter prices")

    def _walk(
        self,
        number: int,
        family: Family,
        trace: Trace,
        found: list[Point],
        start: Sequence[Any],
        prices: Sequence[tuple[int, float]],
        track: Track,
        description: str,
    ) -> None:
        """From one price to the next, appending to `found`; where it ends depends on the points alone."""
        walk = trace.walks[number]
        for place, price in track(prices[len(found) :], description, len(prices) - len(found)):
            beyond = place >= self._config.prices[2]  # only where edits are worth their KL at loose prices alone
            if self._is_over(walk, found) or (beyond and self._start(trace) == self._middle):
                return
            self._solver.reseed(number, place)
            theta, dearer = torch.tensor([start]), 1.0
            if found:
                # Responses that fell apart raise the price.
                theta, dearer = self._onward(found[-1], trace), 1 + found[-1].said.broken_rate
            theta, losses = self._solver.descend([family], theta, price * dearer, self._config.steps, walk.layer)
            if not bool(losses.isfinite().all()) or not bool(theta.isfinite().all()):
                self._say(f"the loss is not finite at a KL weight of {price:.3g}; the search stops there")
                return
            point = self._solver.point(family, theta, price, walk.layer)
            if found is walk.loose and self._solver.shortfall(point.said.behaviour_rate) == 0:
                point = replace(point, val_missed=self._on_val(point.spec))
            found.append(point)
            self._say(_told(point, len(trace.points)))
            trace.prefixes = self._proxy.prefixes.to_json()
            self._keep(trace)

    def _onward(self, point: Point, trace: Trace) -> Theta:
        """The numbers from which the next price starts."""
        if point.proxy_kl * trace.unit < NOTHING:
            # At strength 0 the KL is flat and odds hardly move: Adam would not come back from there.
            return self._begin_at(1, self._start(trace))
        return torch.tensor([point.numbers])

    def _is_over(self, walk: Walk, found: Sequence[Point]) -> bool:
        if not found:
            return False
        if found is walk.loose:
            gone = found[-1].val_missed is not None
            return nothing_more_on_val(found) if gone else self._is_nothing_more(found)
        return self._is_back(found[-1], walk.points) and len(walk.points) >= LEAST_POINTS

    def _is_back(self, point: Point, among: Sequence[Point]) -> bool:
        """Whether a point misses the goal on train more often than the best, by the test of the rule `interval`.

        That rule, which counts val prompts too, hardly ever takes such a point, nor one of a stricter price.
        """

        def missed(one: Point) -> tuple[int, int]:
            return round(one.said.shortfall(self._solver.goal) * one.said.n), one.said.n

        return fisher_greater(*missed(point), *min(map(missed, among))) < WORSE

    def _is_nothing_more(self, found: Sequence[Point]) -> bool:
        """Whether most was gone, and the last price leaves as many train prompts missed as one before it, or more.

        Some prompts are missed whatever the price, such as those at which the base's responses fall apart.
        """
        *before, now = [point.said.shortfall(self._solver.goal) for point in found]
        best = min(before, default=math.inf)
        return best <= now and best <= STUCK * self._base_shortfall

    def _is_stuck(self, walk: Walk) -> bool:
        missed = (self._solver.shortfall(point.said.behaviour_rate) for point in walk.points)
        return min(missed, default=math.inf) > STUCK * self._base_shortfall

    @property
    def _base_shortfall(self) -> float:
        shows = self._proxy.base.shows["target"]
        return self._solver.shortfall(sum(shows) / len(shows))

    # Prices -----------------------------------------------------------------------------------------------------------

    @property
    def _middle(self) -> int:
        """Where in the prices a search begins, unless nothing is worth its KL there."""
        return self._config.prices[2] // 2

    def _start(self, trace: Trace) -> int:
        """Where this one began."""
        return self._middle if trace.start is None else trace.start

    def _prices(self, unit: float) -> list[float]:
        """The grid, and where it goes on at its loose end."""
        strict, loose, n = self._config.prices
        further = (FURTHER - 1) * (n - 1) if strict > loose else 0
        return [unit * strict * (loose / strict) ** (i / max(n - 1, 1)) for i in range(n + further)]

    def _start_price(self, unit: float, start: int) -> float:
        """At this place of the grid; its geometric middle, too, where the grid has no point there."""
        strict, loose, _ = self._config.prices
        return unit * math.sqrt(strict * loose) if start == self._middle else self._prices(unit)[start]


def _told(point: Point, number: int) -> str:
    """Such as `3 points; KL weight 56: behaviour 4% on train (2% broken), 3% missed on val, KL 0.021`."""
    broken = f" ({point.said.broken_rate:.0%} broken)" if point.said.broken_rate else ""
    train = f"behaviour {point.said.behaviour_rate:.0%} on train{broken}"
    val = "" if point.val_missed is None else f", {point.val_missed:.0%} missed on val"
    return f"{number} points; KL weight {point.price:.3g}: {train}{val}, KL {point.proxy_kl:.2g}"


def _named(families: Sequence[Family], finalist: Finalist) -> Family:
    family = next((one for one in families if one.spec == finalist.family), None)
    if family is None:
        raise UserError(
            "the stored search chose a kind of edit that the settings no longer allow",
            got=str(finalist.family),
            mend="set fold.merge and edit.affine as they were, or pass another --out",
        )
    return family


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
