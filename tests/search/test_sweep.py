"""The walk over prices and the competition before it, with a solver whose answers are written down beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from iconoclast_tl.architecture.sites import WRITERS
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.search.families import Family
from iconoclast_tl.search.proxy import OnPolicy, Proxy
from iconoclast_tl.search.solver import SCREENED, Measures, Screened, Solver, screen
from iconoclast_tl.search.sweep import PriceSweep
from iconoclast_tl.search.trace import Finalist, Point, Trace, Walk, read_trace
from tests.search.test_by_outer import make_source
from tests.search.test_gradient import CONFIG, all_families, fresh_proxy

PRICES = [10000.0, 1000.0, 100.0, 10.0, 1.0]
BEGUN = 0.125
"""The number with which the competition left off."""


def place(family: Family) -> float:
    """The residual point of its one direction; each layer's own counts as the last."""
    return 3.0 if family.spec.point is None else family.spec.point


class Written(Solver):
    """Answers by price; every descent ends at a number that names its price."""

    def __init__(self, proxy: Proxy, answers: Mapping[float, Mapping[str, float]], worth: Sequence[float] = ()) -> None:
        config = CONFIG.model_copy(update={"prices": (PRICES[0], PRICES[-1], len(PRICES)), "survivors": 4})
        super().__init__(proxy, "suppress", config, 0)
        self.answers, self.worth = answers, worth
        self.descents: list[tuple[float, float]] = []
        self.competed: list[tuple[list[float], int]] = []

    def descend(
        self, families: Sequence[Family], theta: Any, price: float, steps: int, layer: int = 0, before: Any = None
    ) -> tuple[Any, Any]:
        """From where it started, and at which price."""
        points = [place(family) for family in families]
        if len(families) > 1 or self.competed:
            self.competed.append((points, steps))
        self.descents.append((float(theta.flatten()[0]), price))
        losses = torch.tensor([self.worth[int(point) - 1] if self.worth else 0.0 for point in points])
        return torch.full_like(theta, price / 1e6), losses

    def compare(self, families: Sequence[Family], theta: Any, price: float) -> Any:
        """As the descents."""
        return torch.tensor([self.worth[int(place(family)) - 1] if self.worth else 0.0 for family in families])

    def point(self, family: Family, theta: Any, price: float, layer: int = 0) -> Point:
        """What is written."""
        told = {"rate": 0.5, "proxy": 0.01, "broken": 0.0, "kl": 1.0, "n": 0, **self.answers.get(price, {})}
        return Point(
            spec=replace(family.spec, strengths=dict.fromkeys(WRITERS, (1.0,))),
            numbers=theta[0].tolist(),
            price=price,
            proxy_rate=told["proxy"],
            proxy_kl=told["kl"],
            said=OnPolicy(told["rate"], told["broken"], 0, int(told["n"])),
        )


WalkOver = Callable[..., tuple[Written, list[float]]]


@pytest.fixture
def walk(llama: Model, rows: list[list[int]]) -> WalkOver:
    family = all_families(make_source(["as set"]), llama)[0]

    def made(val: float = 0.0, **answers: Mapping[str, float]) -> tuple[Written, list[float]]:
        proxy = fresh_proxy(llama, rows)
        solver = Written(proxy, {float(price[1:]): answer for price, answer in answers.items()})
        numbers = torch.full((len(WRITERS), 3), BEGUN).tolist()
        trace = Trace([Finalist(family.spec, numbers)], 1.0, proxy.prefixes.to_json(), [Walk(0)])
        found = PriceSweep(solver, on_val=lambda spec: val).run([family], trace)
        return solver, [point.price for point in found.points]

    return made


def test_prices_are_walked_from_the_middle_to_both_ends_each_from_the_one_before(walk: WalkOver) -> None:
    solver, prices = walk()
    assert prices == pytest.approx(PRICES)
    assert solver.descents == [
        (BEGUN, pytest.approx(100)),
        (pytest.approx(1e-4), pytest.approx(10)),
        (pytest.approx(1e-5), pytest.approx(1)),
        (pytest.approx(1e-4), pytest.approx(1000)),  # from the middle again
        (pytest.approx(1e-3), pytest.approx(10000)),
    ]


def test_responses_that_fell_apart_raise_the_next_price(walk: WalkOver) -> None:
    solver, _ = walk(p100={"broken": 0.25})
    assert [price for _, price in solver.descents[:3]] == pytest.approx([100, 12.5, 1])


def test_where_hardly_any_strength_is_left_the_next_price_starts_anew(walk: WalkOver) -> None:
    solver, _ = walk(p10={"kl": 0.04})
    assert [start for start, _ in solver.descents[:3]] == pytest.approx([BEGUN, 1e-4, 0.5])
    solver, _ = walk(p10={"kl": 0.06})
    assert [start for start, _ in solver.descents[:3]] == pytest.approx([BEGUN, 1e-4, 1e-5])


def test_looser_prices_end_where_the_behaviour_is_gone(walk: WalkOver) -> None:
    assert walk(p100={"rate": 0.0})[1] == pytest.approx([10000, 1000, 100])
    assert walk(p10={"rate": 0.0})[1] == pytest.approx([10000, 1000, 100, 10])
    gone = {"rate": 0.0}
    found = walk(p100=gone, p10=gone, p1=gone, val=0.5)[1]
    assert found == pytest.approx([10000, 1000, 100, 10])  # val gained, and might have gained more


def test_looser_prices_end_where_one_gains_nothing(llama: Model, rows: list[list[int]]) -> None:
    def walked(*missed: float, broken: float = 0.0) -> int:
        """Prices that are walked from the middle of nine, where the base misses the goal on a quarter."""
        solver = Written(fresh_proxy(llama, rows), {})
        config = {"prices": (1e8, 1.0, 9)}
        solver.config = solver.config.model_copy(update=config)
        told = dict(zip(PriceSweep(solver)._prices(1.0)[4:9], missed, strict=True))
        solver.answers = {price: {"rate": rate - broken, "broken": broken} for price, rate in told.items()}
        family = all_families(make_source(["as set"]), llama)[0]
        numbers = torch.full((len(WRITERS), 3), BEGUN).tolist()
        trace = Trace([Finalist(family.spec, numbers)], 1.0, solver.proxy.prefixes.to_json(), [Walk(0)])
        return len(PriceSweep(solver).run([family], trace).walks[0].loose)

    assert walked(0.2, 0.11, 0.12, 0.10, 0.1) == 3
    assert walked(0.2, 0.12, 0.11, 0.11, 0.1) == 4
    assert walked(0.2, 0.11, 0.25, 0.11, 0.1) == 3  # responses may fall apart, say
    assert walked(0.2, 0.2, 0.2, 0.2, 0.2) == 5  # most of the behaviour is left


def test_stricter_prices_end_where_more_is_missed_than_chance_explains(walk: WalkOver) -> None:
    """Of 48 prompts: 0 at a price of 10, and 2 (p = 0.25) or 3 (p = 0.12) at stricter ones."""
    gone = {"p10": {"rate": 0.0, "n": 48}}
    two, three = ({"rate": missed / 48, "n": 48} for missed in (2, 3))
    assert walk(p100=two, p1000=two, **gone)[1] == pytest.approx([10000, 1000, 100, 10])
    assert walk(p100=two, p1000=three, **gone)[1] == pytest.approx([1000, 100, 10])
    broken = {"rate": 1 / 48, "broken": 2 / 48, "n": 48}
    assert walk(p100=two, p1000=broken, **gone)[1] == pytest.approx([1000, 100, 10])  # which misses it, too
    back = {"p1000": three, "p100": {"rate": 0.0, "n": 48}}
    assert walk(**back)[1] == pytest.approx([10000, 1000, 100])  # two points are too few


def test_a_search_that_goes_on_from_a_strict_point_decides_as_if_it_had_not_been_stopped(
    llama: Model, rows: list[list[int]]
) -> None:
    """The first point misses 3 of 48, 2 looser ones 2, and a stricter one 0, against which 3 would count as lost."""
    told = {100.0: 3, 10.0: 2, 1.0: 2, 1000.0: 0, 10000.0: 1}
    answers = {price: {"rate": missed / 48, "n": 48} for price, missed in told.items()}
    family = all_families(make_source(["as set"]), llama)[0]
    numbers = torch.full((len(WRITERS), 3), BEGUN).tolist()
    proxy = fresh_proxy(llama, rows)
    begun = Trace([Finalist(family.spec, numbers)], 1.0, proxy.prefixes.to_json(), [Walk(0)])
    kept: list[Trace] = []
    whole = PriceSweep(Written(proxy, answers), keep=lambda trace: kept.append(deepcopy(trace))).run([family], begun)
    stopped = next(trace for trace in kept if len(trace.walks[0].strict) == 1)
    again = PriceSweep(Written(fresh_proxy(llama, rows), answers)).run([family], stopped)
    assert [point.price for point in whole.points] == pytest.approx([10000, 1000, 100, 10, 1])
    assert [point.price for point in again.points] == [point.price for point in whole.points]


def test_no_stricter_price_is_walked_where_the_first_misses_more_than_chance_explains(walk: WalkOver) -> None:
    lost, most, gone = ({"rate": rate, "n": 48} for rate in (0.25, 0.2, 0.0))
    assert walk(p100=lost, p10=most, p1=gone)[1] == pytest.approx([100, 10, 1])
    assert walk(p1000=lost, p100=lost, p10=gone)[1] == pytest.approx([1000, 100, 10])  # two points are too few


def test_the_better_half_goes_on_and_the_best_wins(llama: Model, rows: list[list[int]]) -> None:
    families = [one for one in all_families(make_source(["as set"]), llama) if not one.spec.affine]
    assert len(families) == 4
    for worth, best in ([3.0, 1.0, 2.0], 2.0), ([1.0, float("nan"), 2.0], 1.0):
        solver = Written(fresh_proxy(llama, rows), {}, worth)
        solver.config = solver.config.model_copy(update={"refine_steps": 5})
        trace = PriceSweep(solver).run([one for one in families if one.spec.point is not None])
        (first, early), (second, late) = solver.competed[:2]
        assert sorted(first) == [1.0, 2.0, 3.0]
        assert second == [best, 3.0]
        assert (early, late) == (1, 4)
        assert [one.family.point for one in trace.finalists] == [best, 3.0]


def screened(
    solver: Solver, families: Sequence[Family], strengths: Sequence[float], odds: Sequence[float] = (), kl: float = 0.0
) -> Screened:
    """Odds of the families at strength 1, those of the base being 10; all equal where none is given."""
    given = torch.tensor(odds or [0.0] * len(families))[:, None]
    measures, unedited = (
        Measures(given, torch.full_like(given, kl)),
        Measures(torch.tensor([[10.0]]), torch.zeros(1, 1)),
    )
    return Screened([measures], unedited, 1.0)


def test_where_no_direction_is_worth_its_price_it_begins_at_a_looser_one(
    llama: Model, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs of 0.05 a price: at 100 (5) more than is gained (3); at 10 less. The winner moves something only at 1."""
    families = [one for one in all_families(make_source(["as set"]), llama) if not one.spec.affine]
    families = [one for one in families if one.spec.point is not None]
    monkeypatch.setattr("iconoclast_tl.search.sweep.screen", lambda *given: screened(*given, [7.0, 9.0, 9.5], 0.05))
    solver, said = Written(fresh_proxy(llama, rows), {1e-1: {"rate": 0.0}}, [0.0, 1.0, 2.0]), list[str]()
    moved = {10.0: 9.9, 1.0: 1.0}

    def measure(given: Any, strengths: Any, *prompts: Any) -> Measures:
        return Measures(torch.tensor([[moved[solver.descents[-1][1]]]]), torch.zeros(1, 1))

    monkeypatch.setattr(solver, "measure", measure)
    monkeypatch.setattr(PriceSweep, "_first_layer", lambda *given: 0)
    trace = PriceSweep(solver, said.append).run(families)
    assert trace.start == 4
    assert any("the search begins at a weight of 1," in line for line in said)
    assert [price for _, price in solver.descents[:4]] == pytest.approx([10, 10, 1, 1])  # two rounds each
    assert solver.descents[0][0] == 1.0  # what was screened, not half of it
    walked = [point.price for point in trace.points]
    assert max(walked) > 1 > min(walked)
    assert min(walked) == pytest.approx(0.1)  # beyond the grid, until the behaviour is gone


def test_a_family_is_screened_at_the_strength_that_suits_it(llama: Model, rows: list[list[int]]) -> None:
    """The first is the better of the two at strength 1, the second at ½; NaN at one strength is no loss."""
    solver, nan = Solver(fresh_proxy(llama, rows), "suppress", CONFIG, 0), float("nan")
    odds = torch.tensor([[1.0], [2.0], [nan], [nan]]), torch.tensor([[2.0], [0.0], [5.0], [nan]])
    whole, half = (Measures(given, torch.zeros_like(given)) for given in odds)
    losses = Screened([whole, half], whole, 1.0).losses(solver, 1.0)
    expected = solver.loss(Measures(torch.tensor([[1.0], [0.0], [5.0], [nan]]), torch.zeros(4, 1)), 1.0)
    assert torch.equal(losses[:3], expected[:3])
    assert losses.isnan().tolist() == [False, False, False, True]
    alone = Screened([whole], whole, 1.0).losses(solver, 1.0)
    assert not torch.equal(alone[:2], expected[:2])

    families = [one for one in all_families(make_source(["as set"]), llama) if not one.spec.affine]
    solver.reseed(1)
    both = screen(solver, families, (1.0, 0.5))
    solver.reseed(1)
    prompts = solver.draw(SCREENED)
    for strength, measured in zip((1.0, 0.5), both.measures, strict=True):
        again = solver.measure(families, strength * solver.profile.ones(len(families)), *prompts)
        assert torch.allclose(measured.odds, again.odds)
        assert torch.allclose(measured.kl, again.kl)
    assert both.unit == pytest.approx(1 / float(both.measures[0].kl.mean(-1).nanmedian()))  # of strength 1


class Stubborn(Written):
    """Each family leaves its own rate, and another at the loosest price, and has its own number in every descent."""

    rates: Mapping[float, tuple[float, float]]
    ready: list[tuple[float, float, int]]
    """Family, number and first layer at the beginning of every descent."""
    drawn: list[tuple[int, ...]]
    """What prompts were drawn by."""

    def reseed(self, *numbers: int) -> None:
        """Remember."""
        self.drawn.append(numbers)
        super().reseed(*numbers)

    def descend(
        self, families: Sequence[Family], theta: Any, price: float, steps: int, layer: int = 0, before: Any = None
    ) -> tuple[Any, Any]:
        """To a number of the family."""
        _, losses = super().descend(families, theta, price, steps, layer, before)
        points = [place(family) for family in families]
        self.ready.append((points[0], float(theta.flatten()[0]), self.proxy._layer))
        return torch.tensor(points)[:, None, None].expand_as(theta) / 8, losses

    def point(self, family: Family, theta: Any, price: float, layer: int = 0) -> Point:
        """With what names the family."""
        told, (rate, loosest) = super().point(family, theta, price, layer), self.rates[self.ready[-1][0]]
        said = OnPolicy(loosest if price < 1.5 else rate, 0.0, 0)
        return replace(told, said=said)


@pytest.mark.parametrize(
    ("rates", "walked"),
    [
        ({1.0: (0.13, 0.12)}, [1.0]),  # the base shows it on a quarter of the prompts
        ({1.0: (0.25, 0.12)}, [1.0]),
        ({1.0: (0.13, 0.13), 2.0: (0.25, 0.12)}, [1.0, 2.0]),
        ({1.0: (0.25, 0.25), 2.0: (0.25, 0.25)}, [1.0, 2.0]),  # the third did not come as far as that
    ],
)
def test_a_family_that_leaves_the_behaviour_as_it_was_gives_way_to_the_next(
    llama: Model,
    rows: list[list[int]],
    rates: Mapping[float, tuple[float, float]],
    walked: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[tuple[float, float, int]] = []
    layers = {1.0: 2, 2.0: 1}

    def first_layer(search: PriceSweep, family: Family, theta: Any, price: float) -> int:
        measured.append((place(family), float(theta.flatten()[0]), search._proxy._layer))
        return layers[place(family)]

    monkeypatch.setattr(PriceSweep, "_first_layer", first_layer)
    monkeypatch.setattr("iconoclast_tl.search.sweep.screen", screened)
    families = [one for one in all_families(make_source(["as set"]), llama) if not one.spec.affine]
    solver, said = Stubborn(fresh_proxy(llama, rows), {}, [0.0, 1.0, 2.0]), list[str]()
    solver.rates, solver.ready, solver.drawn = rates, [], []
    trace = PriceSweep(solver, said.append).run([one for one in families if one.spec.point is not None])
    points = trace.points
    prices = dict.fromkeys(walked, PRICES)
    assert [point.spec.point for point in points] == [i for i in walked for _ in prices[i]]
    assert [point.price for point in points] == pytest.approx([price for i in walked for price in prices[i]])
    assert [walk.layer for walk in trace.walks] == [layers[i] for i in walked]
    assert measured == [(i, i / 8, 0) for i in walked]  # each with its own numbers, all layers run
    assert solver.ready[2:] == [(i, i / 8, layers[i]) for i in walked for _ in prices[i]]
    assert len(set(solver.drawn)) == len(solver.drawn) == len(points) + len(walked)  # each from prompts of its own
    assert sum("tracing the next best direction" in line for line in said) == len(walked) - 1
    assert [line.split(";")[0] for line in said if line.startswith("tracing ")] == [
        f"tracing plain, point {i:g}, as set" for i in walked
    ]


def test_a_search_without_a_point_is_not_done(llama: Model, rows: list[list[int]]) -> None:
    class Lost(Written):
        def descend(self, *args: Any, **kwargs: Any) -> Any:
            theta, losses = super().descend(*args, **kwargs)
            return theta, losses if len(losses) > 1 else losses * float("nan")

    kept: list[bool] = []
    said: list[str] = []
    solver = Lost(fresh_proxy(llama, rows), {}, [0.0, 1.0, 2.0])
    search = PriceSweep(solver, said.append, keep=lambda trace: kept.append(trace.done))
    with pytest.raises(UserError, match="no strengths gave a finite loss"):
        search.run(all_families(make_source(["as set"]), llama))
    assert kept == [False] * 3  # the competition, and two finalists that were begun
    assert any("not finite at a KL weight" in line for line in said)


def test_a_survivor_that_loses_itself_is_named(llama: Model, rows: list[list[int]]) -> None:
    class Astray(Written):
        def descend(self, families: Sequence[Family], *args: Any, **kwargs: Any) -> Any:
            theta, losses = super().descend(families, *args, **kwargs)
            for i, one in enumerate(families):
                if one.spec.point == 1:
                    theta[i, 0, 0] = float("nan")  # while its loss still is a number
            return theta, losses

    said: list[str] = []
    families = [one for one in all_families(make_source(["as set"]), llama) if not one.spec.affine]
    trace = PriceSweep(Astray(fresh_proxy(llama, rows), {}, [0.0, 1.0, 2.0]), said.append).run(families)
    assert [one.family.point for one in trace.finalists] == [2.0, 3.0]
    assert any(line.startswith("plain, point 1, as set: the loss is not finite") for line in said)


def test_a_trace_of_a_family_that_is_not_asked_for_is_refused(llama: Model, rows: list[list[int]]) -> None:
    families = all_families(make_source(["as set"]), llama)
    proxy = fresh_proxy(llama, rows)
    finalists = [Finalist(replace(families[0].spec, directions="others"), [])]
    trace = Trace(finalists, 1.0, proxy.prefixes.to_json(), [Walk(0)])
    with pytest.raises(UserError, match="no longer allow"):
        PriceSweep(Written(proxy, {})).run(families, trace)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"trace": {"finalists": []}, "about": {}}',
        '{"trace": {"finalists": [], "walks": [{"layer": 0, "loose": []}]}, "about": {}}',
        '{"trace": 3, "about": {}}',
    ],
)
def test_a_damaged_trace_is_told_and_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / "trace.json").write_text(content)
    with pytest.raises(UserError, match="remove it to search again"):
        read_trace(tmp_path / "trace.json")
    assert (tmp_path / "trace.json").read_text() == content
