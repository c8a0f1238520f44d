"""The gradient moves what it should, in the direction that was asked for, and says what it gave up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.edit import EditConfig
from iconoclast_tl.edits.hooks import Rows, preview
from iconoclast_tl.edits.updates import Updates
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.suite import EvaluationConfig, Questions, respond
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.loading import LoadedModel
from iconoclast_tl.models.sites import WRITERS, Component, hf_sites
from iconoclast_tl.search.config import GradientConfig
from iconoclast_tl.search.families import Family, Source, families
from iconoclast_tl.search.gradient import GradientSearch, last_near_least
from iconoclast_tl.search.objective import Goal
from iconoclast_tl.search.proxy import Proxy
from iconoclast_tl.search.space import KernelSpace
from tests.search.test_objective import questions

CONFIG = GradientConfig(prompts=4, batch_size=3, steps=4, prices=(1.0, 0.01, 3), survivors=2, refine_steps=2)


@pytest.fixture
def source(llama: LoadedModel) -> Source:
    generator = torch.Generator().manual_seed(2)
    vectors = torch.nn.functional.normalize(torch.randn(4, 24, generator=generator), dim=-1)
    writes: dict[Component, torch.Tensor] = {name: torch.randn(3, 24, generator=generator) for name in WRITERS}
    return Source({"as set": Directions(vectors, torch.ones(4))}, EditConfig(), writes)


@pytest.fixture
def proxy(llama: LoadedModel, rows: list[list[int]]) -> Proxy:
    target, neutral = questions(rows[:4]), questions(rows[4:])
    said = respond(llama, {"target": target}, EvaluationConfig(max_new_tokens=6))["target"]
    config = EvaluationConfig(markers=(said[0].text.split()[1],), max_new_tokens=6, kl_tokens=4)
    return make_proxy(llama, target, neutral, config)


def make_proxy(model: LoadedModel, target: Questions, neutral: Questions, config: EvaluationConfig) -> Proxy:
    base = Baseline(model, {"target": target, "neutral": neutral}, config)
    return Proxy(base, hf_sites(model.hf), temperature=1.0)


def all_families(source: Source, llama: LoadedModel) -> list[Family]:
    return families(source, KernelSpace(direction_index=(0, 1)), (False, True), hf_sites(llama.hf))


def base_rate(proxy: Proxy) -> float:
    with torch.no_grad():
        return float(proxy.log_odds(Rows(), torch.arange(4), 1).sigmoid().mean())


@pytest.mark.parametrize(("goal", "sign"), [("suppress", 1), ("strengthen", -1)])
@pytest.mark.parametrize("profile", ["free", "kernel"])
def test_the_behaviour_goes_where_it_was_asked_to(
    llama: LoadedModel, proxy: Proxy, source: Source, goal: Goal, sign: int, profile: Any
) -> None:
    # Random directions, along which either sign may be the one that helps.
    free = {"profile": profile, "allow_negative": True, "steps": 15, "batch_size": 4, "prices": (0.01, 0.001, 2)}
    points = GradientSearch(proxy, goal, CONFIG.model_copy(update=free), seed=0).run(all_families(source, llama))
    proxy.start_at(0)  # all layers, and the paths as they are known by now
    best = min(point.proxy_rate * sign for point in points)
    assert best < base_rate(proxy) * sign
    assert not [m for m in llama.hf.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize(("goal", "sign"), [("suppress", 1), ("strengthen", -1)])
def test_strengths_keep_within_their_bounds(
    llama: LoadedModel, proxy: Proxy, source: Source, goal: Goal, sign: int
) -> None:
    config = CONFIG.model_copy(update={"learning_rate": 3.0, "bound": 1.5, "prices": (0.1, 0.001, 3)})
    largest = 0.0
    for point in GradientSearch(proxy, goal, config, seed=0).run(all_families(source, llama)):
        strengths = torch.tensor([point.parameters["strengths"][name] for name in WRITERS])
        assert bool((strengths * sign >= 0).all())
        largest = max(largest, float(strengths.abs().max()))
    assert largest == 1.5  # it did run into them, and no further


def test_what_the_search_scored_is_what_the_edit_does(llama: LoadedModel, proxy: Proxy, source: Source) -> None:
    point = GradientSearch(proxy, "suppress", CONFIG, seed=0).run(all_families(source, llama))[-1]
    proxy.start_at(0)  # all layers again
    with torch.no_grad(), preview(source.build(point.parameters), proxy.sites):
        odds = proxy.log_odds(Rows(), torch.arange(4), 1)
        kl = proxy.kl(Rows(), torch.arange(3), 1)
    assert float(odds.sigmoid().mean()) == pytest.approx(point.proxy_rate, rel=1e-4)
    assert float(kl.mean()) == pytest.approx(point.proxy_kl, rel=1e-4)


def test_a_search_is_a_function_of_its_seed(llama: LoadedModel, rows: list[list[int]], source: Source) -> None:
    def trace(seed: int) -> list[dict[str, Any]]:
        target, neutral = questions(rows[:4]), questions(rows[4:])
        said = respond(llama, {"target": target}, EvaluationConfig(max_new_tokens=6))["target"]
        config = EvaluationConfig(markers=(said[0].text.split()[1],), max_new_tokens=6, kl_tokens=4)
        fresh = make_proxy(llama, target, neutral, config)
        search = GradientSearch(fresh, "suppress", CONFIG, seed)
        return [point.parameters for point in search.run(all_families(source, llama))]

    assert trace(0) == trace(0)
    assert trace(0) != trace(1)


def test_a_family_without_a_finite_loss_is_dropped_and_named(llama: LoadedModel, proxy: Proxy, source: Source) -> None:
    good = all_families(source, llama)[0]
    at = {site: replace(update, writes=update.writes * float("nan")) for site, update in good.updates.at.items()}
    bad = Family({**good.parameters, "direction_index": 9.0}, Updates(at, good.updates.strengths))
    said: list[str] = []
    points = GradientSearch(proxy, "suppress", CONFIG, 0, said.append).run([bad, good])
    assert any("point 10" in line and "not finite" in line for line in said)
    assert points[-1].parameters["direction_index"] == good.parameters["direction_index"]
    with pytest.raises(UserError, match="finite loss"):
        GradientSearch(proxy, "suppress", CONFIG, 0).run([bad])


def test_a_model_that_never_shows_the_behaviour_is_told_with_its_rate(
    llama: LoadedModel, rows: list[list[int]]
) -> None:
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
