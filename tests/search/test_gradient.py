"""The gradient moves what it should, in the direction that was asked for, and says what it gave up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.architecture.sites import WRITERS, Component
from iconoclast_tl.detectors.registry import make_detector
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.hooks import hooked, preview
from iconoclast_tl.edits.updates import Updates, edit_updates
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.metrics.compliance import complies
from iconoclast_tl.evaluation.suite import EvaluationConfig, Questions, respond
from iconoclast_tl.execution.batching import Room
from iconoclast_tl.execution.candidates import BatchCandidates
from iconoclast_tl.execution.generation import Response
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.search import proxy as proxy_module
from iconoclast_tl.search.config import GradientConfig
from iconoclast_tl.search.families import Family, Source, families
from iconoclast_tl.search.objective import Goal
from iconoclast_tl.search.proxy import Proxy
from iconoclast_tl.search.seeds import derived_seed
from iconoclast_tl.search.solver import Solver
from iconoclast_tl.search.space import KernelSpace
from iconoclast_tl.search.spec import EditSpec
from iconoclast_tl.search.sweep import PriceSweep, last_near_least, nothing_more_on_val
from iconoclast_tl.search.trace import Point, Trace
from tests.edits.edits import random_edit, scaled
from tests.search.specs import point as some_point
from tests.search.test_objective import ByPrompt, questions

CONFIG = GradientConfig(prompts=4, batch_size=3, steps=4, prices=(1.0, 0.01, 3), survivors=2, refine_steps=2)


@pytest.fixture
def _no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid ends where it ends."""
    monkeypatch.setattr("iconoclast_tl.search.sweep.FURTHER", 1)


@pytest.fixture
def source(llama: Model) -> Source:
    generator = torch.Generator().manual_seed(2)
    vectors = torch.nn.functional.normalize(torch.randn(4, 24, generator=generator), dim=-1)
    writes: dict[Component, torch.Tensor] = {name: torch.randn(3, 24, generator=generator) for name in WRITERS}
    return Source({"as set": Directions.single(vectors, torch.ones(4))}, EditConfig(), Ground(neutral_writes=writes))


@pytest.fixture
def proxy(llama: Model, rows: list[list[int]]) -> Proxy:
    return fresh_proxy(llama, rows)


def fresh_proxy(llama: Model, rows: list[list[int]]) -> Proxy:
    """With a behaviour that the model shows sometimes: a word that it says to the first prompt."""
    target, neutral = questions(rows[:4]), questions(rows[4:])
    said = respond(llama, {"target": target}, EvaluationConfig(max_new_tokens=6))["target"]
    config = EvaluationConfig(markers=(said[0].text.split()[1],), max_new_tokens=6, kl_tokens=4)
    return make_proxy(llama, target, neutral, config)


def make_proxy(model: Model, target: Questions, neutral: Questions, config: EvaluationConfig) -> Proxy:
    base = Baseline(model, {"target": target, "neutral": neutral}, config, make_detector(config, config.detector))
    return Proxy(base, hf_sites(model.hf), temperature=1.0)


def run(
    proxy: Proxy,
    goal: Goal,
    config: GradientConfig,
    seed: int,
    competing: Sequence[Family],
    trace: Trace | None = None,
    **options: Any,
) -> Trace:
    return PriceSweep(Solver(proxy, goal, config, seed), **options).run(competing, trace)


def all_families(source: Source, llama: Model) -> list[Family]:
    return families(source, KernelSpace(points=(0, 1)), (False, True), hf_sites(llama.hf))


def base_rate(proxy: Proxy) -> float:
    with torch.no_grad():
        return float(proxy.log_odds(BatchCandidates(), torch.arange(4), 1).sigmoid().mean())


@pytest.mark.parametrize(("goal", "sign"), [("suppress", 1), ("strengthen", -1)])
@pytest.mark.parametrize("profile", ["free", "kernel"])
def test_the_behaviour_goes_where_it_was_asked_to(
    llama: Model, proxy: Proxy, source: Source, goal: Goal, sign: int, profile: Any
) -> None:
    # Random directions, along which either sign may be the one that helps.
    free = {"profile": profile, "allow_negative": True, "steps": 15, "batch_size": 4, "prices": (0.01, 0.001, 2)}
    points = run(proxy, goal, CONFIG.model_copy(update=free), 0, all_families(source, llama)).points
    proxy.start_at(0)  # all layers, and the prefixes as they are known by now
    best = min(point.proxy_rate * sign for point in points)
    assert best < base_rate(proxy) * sign
    assert not [m for m in llama.hf.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize(("goal", "sign"), [("suppress", 1), ("strengthen", -1)])
def test_strengths_keep_within_their_bounds(llama: Model, proxy: Proxy, source: Source, goal: Goal, sign: int) -> None:
    config = CONFIG.model_copy(update={"learning_rate": 3.0, "bound": 1.5, "prices": (0.1, 0.001, 3)})
    largest = 0.0
    for point in run(proxy, goal, config, 0, all_families(source, llama)).points:
        strengths = torch.tensor([point.spec.strengths[name] for name in WRITERS])
        assert bool((strengths * sign >= 0).all())
        largest = max(largest, float(strengths.abs().max()))
    assert largest == 1.5  # it did run into them, and no further


def test_what_the_search_scored_is_what_the_edit_does(llama: Model, proxy: Proxy, source: Source) -> None:
    one_price = CONFIG.model_copy(update={"prices": (0.1, 0.1, 1)})  # later ones would teach the proxy more
    (point,) = run(proxy, "suppress", one_price, 0, all_families(source, llama)).points
    proxy.start_at(0)  # all layers again
    with torch.no_grad(), preview(source.build(point.spec), proxy.sites):
        odds = proxy.log_odds(BatchCandidates(), torch.arange(4), 1)
        kl = proxy.kl(BatchCandidates(), torch.arange(3), 1)
    assert float(odds.sigmoid().mean()) == pytest.approx(point.proxy_rate, rel=1e-4)
    assert float(kl.mean()) == pytest.approx(point.proxy_kl, rel=1e-4)


@pytest.mark.usefixtures("_no_further")
def test_a_search_is_a_function_of_its_seed(llama: Model, rows: list[list[int]], source: Source) -> None:
    def trace(seed: int) -> list[EditSpec]:
        found = run(fresh_proxy(llama, rows), "suppress", CONFIG, seed, all_families(source, llama))
        return [point.spec for point in found.points]

    assert trace(0) == trace(0)
    assert trace(0) != trace(1)


def test_a_family_without_a_finite_loss_is_dropped_and_named(llama: Model, proxy: Proxy, source: Source) -> None:
    good = all_families(source, llama)[0]
    at = {site: replace(update, writes=update.writes * float("nan")) for site, update in good.updates.at.items()}
    bad = Family(replace(good.spec, point=10.0), Updates(at, good.updates.strengths))
    said: list[str] = []
    points = run(proxy, "suppress", CONFIG, 0, [bad, good], say=said.append).points
    assert any("point 10" in line and "not finite" in line for line in said)
    assert points[-1].spec.point == good.spec.point
    with pytest.raises(UserError, match="finite loss"):
        run(proxy, "suppress", CONFIG, 0, [bad])


def test_a_model_that_never_shows_the_behaviour_is_told_with_its_rate(llama: Model, rows: list[list[int]]) -> None:
    target: Questions = questions(rows[:4])
    config = EvaluationConfig(markers=("never said",), max_new_tokens=6, kl_tokens=4)
    with pytest.raises(UserError, match="never shows the behaviour: got 0 of 4 train target prompts"):
        make_proxy(llama, target, questions(rows[4:]), config)


def test_layers_are_left_out_as_long_as_the_gain_stays() -> None:
    assert last_near_least([1.0, 1.02, 1.04, 2.0], 6.0, 0.01) == 2
    assert last_near_least([1.2, 1.0, 1.1], 2.0, 0.01) == 1
    assert last_near_least([1.0, 1.2, 1.03, float("nan")], 6.0, 0.01) == 2
    assert last_near_least([2.0, 2.0, 2.1], 2.0, 0.01) == 0  # an edit that gains nothing tells nothing
    assert last_near_least([float("nan"), float("inf")], 2.0, 0.01) == 0


class EasilyPleased(Solver):
    """For which a quarter of the prompts is none, so that val is asked on a random model, too."""

    def shortfall(self, rate: float) -> float:
        return max(rate - 0.25, 0)


@pytest.mark.parametrize(("profile", "walks"), [("free", 1), ("kernel", 1), ("free", 2)])
def test_a_search_that_is_stopped_anywhere_ends_as_if_it_had_not_been(
    llama: Model,
    rows: list[list[int]],
    source: Source,
    profile: Any,
    walks: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PriceSweep, "_is_stuck", lambda *_: walks > 1)  # then every finalist is walked
    free = {"profile": profile, "prices": (1.0, 0.001, 5), "allow_negative": True, "survivors": 2 * walks}
    config = CONFIG.model_copy(update=free)
    competing, kept = all_families(source, llama), list[str]()

    def search(trace: Trace | None) -> tuple[Trace, int]:
        asked: list[float] = []

        def on_val(spec: EditSpec) -> float:  # falls with the strengths, so that the walk goes on
            asked.append(1 - float(torch.tensor([*spec.strengths.values()]).abs().mean()) / 3)
            return asked[-1]

        def keep(found: Trace) -> None:
            kept.append(json.dumps(found.to_json()))

        solver = EasilyPleased(fresh_proxy(llama, rows), "suppress", config, 0)
        return PriceSweep(solver, on_val=on_val, keep=keep).run(competing, trace), len(asked)

    whole, asked = search(None)
    states = list(kept)
    assert len(whole.walks) == walks
    # The competition, the beginning of every walk, every price, the end.
    assert len(states) == 1 + walks + len(whole.points) + 1 >= 6
    assert asked
    for state in states:
        before = Trace.from_json(json.loads(state))
        known = sum(point.val_missed is not None for point in before.points)
        again, asked_again = search(before)
        assert again.to_json() == whole.to_json()
        assert asked_again == asked - known


def test_what_was_learned_of_the_behaviour_is_kept_with_the_trace(
    llama: Model, rows: list[list[int]], source: Source
) -> None:
    kept: list[Trace] = []
    config = CONFIG.model_copy(update={"prices": (1.0, 0.001, 5), "allow_negative": True})
    run(
        fresh_proxy(llama, rows),
        "suppress",
        config,
        0,
        all_families(source, llama),
        keep=lambda trace: kept.append(Trace.from_json(json.loads(json.dumps(trace.to_json())))),
    )
    first, forgetful = kept[2], fresh_proxy(llama, rows)
    assert first.prefixes != forgetful.prefixes.to_json()  # the point's generation said something new
    forgetful.prefixes.load(first.prefixes)
    assert forgetful.prefixes.to_json() == first.prefixes


@contextmanager
def room_for(model: Model, most: int) -> Iterator[None]:
    """A model that runs out of memory with more rows than that."""

    def refuse(module: Any, args: Any, kwargs: Any) -> None:
        if len(kwargs["input_ids"]) > most:
            raise torch.OutOfMemoryError("too many")

    handle = model.hf.model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def halving(llama: Model, rows: list[list[int]]) -> Solver:
    config = CONFIG.model_copy(update={"batch_size": 4, "smoothness": 0.3})
    return Solver(fresh_proxy(llama, rows), "suppress", config, 0)


def test_a_batch_that_does_not_fit_is_halved_and_the_gradient_stays(
    llama: Model, rows: list[list[int]], source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    competing = all_families(source, llama)[:2]

    def gradient(most: int) -> tuple[torch.Tensor, torch.Tensor]:
        solver = halving(llama, rows)
        theta = solver.profile.start(2) * torch.linspace(0.5, 1.5, 12).reshape(2, 2, 3)
        with room_for(llama, most):
            return solver.gradient(competing, theta.requires_grad_(), 0.1, 0)

    (losses, whole), (parted_losses, parted) = gradient(99), gradient(3)
    assert any("going on with" in line for line in caplog.messages)
    # Sums in another order: float32 rounding.
    torch.testing.assert_close(parted, whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parted_losses, losses, rtol=1e-5, atol=1e-6)
    assert float(whole.abs().min()) > 1e-4  # there was something to get wrong


def test_a_backward_pass_that_does_not_fit_counts_once(
    llama: Model, rows: list[list[int]], source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    competing = all_families(source, llama)[:2]
    grad, failures = torch.autograd.grad, iter([True])

    def fail_once(*args: Any, **kwargs: Any) -> Any:
        if next(failures, False):
            raise torch.OutOfMemoryError("too many")
        return grad(*args, **kwargs)

    def gradient() -> tuple[torch.Tensor, torch.Tensor]:
        solver = halving(llama, rows)
        return solver.gradient(competing, solver.profile.start(2).requires_grad_(), 0.1, 0)

    expected = gradient()
    monkeypatch.setattr(torch.autograd, "grad", fail_once)
    for found, wanted in zip(gradient(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert not next(failures, False)


def test_a_point_is_measured_in_what_memory_there_is(llama: Model, rows: list[list[int]], source: Source) -> None:
    family = all_families(source, llama)[0]

    def point(most: int) -> Point:
        solver = halving(llama, rows)
        with room_for(llama, most):
            return solver.point(family, solver.profile.start(1), 0.1)

    whole, parted = point(99), point(2)
    assert parted.said == whole.said
    assert parted.proxy_rate == pytest.approx(whole.proxy_rate, rel=1e-4)
    assert parted.proxy_kl == pytest.approx(whole.proxy_kl, rel=1e-4)


def test_the_gradient_is_that_of_the_loss(llama: Model, proxy: Proxy, source: Source) -> None:
    # Finite differences in float32: steps of 1e-2 leave an error of about 1e-3 of the largest entry.
    solver = Solver(proxy, "suppress", CONFIG.model_copy(update={"batch_size": 4, "smoothness": 0.3}), 0)
    competing = all_families(source, llama)[:2]
    theta = solver.profile.start(2) * torch.linspace(0.5, 1.5, 12).reshape(2, 2, 3)
    losses, gradient = solver.gradient(competing, theta.clone().requires_grad_(), 0.1, 0)
    prompts = solver.draw(4)  # all there are

    def loss(numbers: torch.Tensor) -> torch.Tensor:
        smooth = 0.3 * numbers.diff(dim=-1).square().mean((1, 2))
        return solver.loss(solver.measure(competing, numbers, *prompts), 0.1) + smooth

    torch.testing.assert_close(losses, loss(theta), rtol=1e-5, atol=1e-6)
    for index in [(0, 0), (1, 2)]:
        step = torch.zeros_like(theta)
        step[:, index[0], index[1]] = 1e-2
        numeric = (loss(theta + step) - loss(theta - step)) / 2e-2
        torch.testing.assert_close(numeric, gradient[:, index[0], index[1]], rtol=0.02, atol=2e-3)


def test_what_a_refresh_finds_is_the_detectors_with_each_prompt(
    llama: Model, rows: list[list[int]], source: Source
) -> None:
    """Under an edit that changes what is said, of prompts that alone decide."""
    target, neutral = questions(rows[:4]), questions(rows[4:])
    config = EvaluationConfig(max_new_tokens=6, kl_tokens=4)
    base = Baseline(llama, {"target": target, "neutral": neutral}, config, ByPrompt(target))
    proxy = Proxy(base, hf_sites(llama.hf), temperature=1.0)
    edit, before = scaled(random_edit(), 2.0), proxy.prefixes.to_json()["opening"][1]
    with hooked(edit_updates(edit, proxy.sites), proxy.sites) as assigned:
        said = proxy.refresh(assigned)
    with preview(edit, proxy.sites):
        first = respond(llama, {"target": target}, config)["target"][1].tokens[:1]
    assert said.behaviour_rate == 1 / 4
    assert list(first) not in before
    assert proxy.prefixes.to_json()["opening"] == [[], sorted([*before, list(first)]), [], []]


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_what_a_refresh_finds_is_of_what_is_said_now(
    llama: Model, rows: list[list[int]], factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a word that the base says to the first prompt; nothing is generated beyond it."""
    proxy, edit = fresh_proxy(llama, rows), scaled(random_edit(), factor)
    behaviour = proxy.base.detector
    with preview(edit, proxy.sites):
        whole = respond(llama, {"target": proxy.target}, proxy.base.config)["target"]
    shows = [behaviour.settled(response.text) for response in whole]
    broken = [not is_shown and not complies(r.text, False) for is_shown, r in zip(shows, whole, strict=True)]
    said: list[Response] = []
    honest = proxy_module.generate

    def noting(*given: Any, **named: Any) -> list[Response]:
        said.extend(honest(*given, **named))
        return said

    monkeypatch.setattr(proxy_module, "generate", noting)
    with hooked(edit_updates(edit, proxy.sites), proxy.sites) as assigned:
        found = proxy.refresh(assigned)
    assert (found.behaviour_rate, found.broken_rate) == (sum(shows) / 4, sum(broken) / 4)
    assert sum(broken) < 4 - sum(shows)  # some neither show it nor are broken
    assert (shows == proxy.base.shows["target"]) == (factor == 0)
    shorter = [len(now.tokens) < len(then.tokens) for now, then in zip(said, whole, strict=True)]
    assert [short for short, is_shown in zip(shorter, shows, strict=True) if not is_shown] == [False] * (4 - sum(shows))
    assert factor or any(shorter)


def test_looser_prices_end_where_val_gains_nothing() -> None:
    def over(*missed: float | None) -> bool:
        return nothing_more_on_val([some_point(val_missed=value) for value in missed])

    assert not over(None)
    assert not over(0.5)
    assert over(0.0)
    assert over(1.0)  # no better than the base
    assert not over(0.5, 0.4)
    assert over(0.5, 0.5)
    assert not over(0.5, 0.4, None)  # a train prompt misses it again
    assert over(0.5, None, 0.6)


def test_every_tuple_of_numbers_has_a_seed_of_its_own() -> None:
    seeds = [derived_seed(seed, number) for seed in range(3) for number in range(20)]
    assert len(set(seeds)) == 60
    assert derived_seed(1, 2) == derived_seed(1, 2) != derived_seed(2, 1)


def test_candidates_apart_have_the_gradients_that_they_have_together(
    llama: Model, proxy: Proxy, source: Source
) -> None:
    solver, chosen = Solver(proxy, "suppress", CONFIG, 0), all_families(source, llama)[:3]
    theta, found = solver.profile.start(3).requires_grad_(), []
    for rows in (1, 2, 64):
        solver._candidates = Room(rows)
        solver.reseed(7)
        found.append(solver.gradient(chosen, theta, 0.3, 0))
    for losses, gradient in found[1:]:
        assert torch.allclose(losses, found[0][0], rtol=1e-4)
        assert torch.allclose(gradient, found[0][1], rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))
    assert not torch.allclose(found[0][1][0], found[0][1][1], rtol=0.1)
