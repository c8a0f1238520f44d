"""The outer study: every choice reaches the edit, a trial depends on nothing else, and a stopped study goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from iconoclast_tl.architecture.sites import WRITERS, Component
from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.sets import AS_SET, set_name
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.scores.config import ScoreConfig
from iconoclast_tl.search.by_outer import OuterSpace, OuterStudy
from iconoclast_tl.search.config import GradientConfig, OuterConfig, SearchConfig
from iconoclast_tl.search.families import Source, families
from iconoclast_tl.search.job import Found, Job
from iconoclast_tl.search.methods import find
from iconoclast_tl.search.proxy import Proxy
from iconoclast_tl.search.solver import Solver, screen
from iconoclast_tl.search.space import Trial
from tests.search.test_gradient import fresh_proxy

OUTER = OuterConfig(estimators=("mean", "median"), benign_ranks=(0, 2))
CONFIG = SearchConfig(
    method="outer",
    n_trials=4,
    n_startup_trials=2,
    gradient=GradientConfig(batch_size=3, steps=2, prices=(1.0, 0.01, 3)),
    outer=OUTER,
)
CHOSEN: dict[str, Any] = {
    "direction_scope": "global",
    "direction_point": 2.0,
    "affine": False,
    "profile": "free",
    "row_normalization": "none",
    "estimator": "mean",
    "orthogonalize": False,
    "benign_rank": 0,
    "price": 0.1,
}


class First:
    """A trial that takes the first of everything, but what it is told."""

    def __init__(self, **told: Any) -> None:
        self.told, self.asked = told, dict[str, Any]()

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.asked[name] = (low, high, log)
        return self.told.get(name, low)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.asked[name] = list(choices)
        return self.told.get(name, choices[0])


def make_source(names: list[str], seed: int = 2) -> Source:
    generator = torch.Generator().manual_seed(seed)

    def directions() -> Directions:
        vectors = torch.nn.functional.normalize(torch.randn(4, 24, generator=generator), dim=-1)
        return Directions.single(vectors, torch.ones(4))

    writes: dict[Component, torch.Tensor] = {name: torch.randn(3, 24, generator=generator) for name in WRITERS}
    return Source({name: directions() for name in names}, EditConfig(), Ground(neutral_writes=writes))


@pytest.fixture
def source() -> Source:
    chosen = [(e, o, b) for e in OUTER.estimators for o in (False, True) for b in OUTER.benign_ranks]
    names = [set_name(DirectionConfig(estimator=e, orthogonalize=o, benign_rank=b)) for e, o, b in chosen]
    assert len(set(names)) == 8
    return make_source([AS_SET, *names])


def make_job(proxy: Proxy, source: Source, folder: Path, **changes: Any) -> Job:
    config = CONFIG.model_copy(update=changes)
    return Job(
        sites=proxy.sites,
        train=proxy.base,
        val=proxy.base,
        source=source,
        config=config,
        scores=ScoreConfig(),
        seed=0,
        journal=folder / "journal",
        trace=folder / "trace",
    )


def make_study(llama: Model, rows: list[list[int]], source: Source, folder: Path) -> OuterStudy:
    job = make_job(fresh_proxy(llama, rows), source, folder)

    def new_proxy() -> Proxy:
        return Proxy(job.train, job.sites, temperature=1.0)

    return OuterStudy(new_proxy, source, CONFIG, 0, job.objective)


def test_every_choice_reaches_the_edit(llama: Model, rows: list[list[int]], source: Source, tmp_path: Path) -> None:
    study = make_study(llama, rows, source, tmp_path)

    def digest(**choice: Any) -> str:
        return source.build(study.solve({**CHOSEN, **choice}).spec).digest()

    plain = digest()
    changed = [
        {"direction_scope": "per layer"},
        {"direction_point": 1.0},
        {"affine": True},
        {"profile": "kernel"},
        {"row_normalization": "pre"},
        {"estimator": "median"},
        {"orthogonalize": True},
        {"benign_rank": 2},
        {"price": 1.0},
    ]
    assert {name for choice in changed for name in choice} == set(CHOSEN)
    assert len({plain, *(digest(**choice) for choice in changed)}) == len(changed) + 1
    # The first was solved for after nothing, and is again after all of them.
    assert digest() == plain


def test_what_was_chosen_is_what_is_built(llama: Model, rows: list[list[int]], source: Source, tmp_path: Path) -> None:
    study = make_study(llama, rows, source, tmp_path)
    point = study.solve({**CHOSEN, "affine": True, "row_normalization": "pre", "estimator": "median", "benign_rank": 2})
    edit = source.build(point.spec)
    assert edit.is_affine
    assert edit.row_normalization == "pre"
    torch.testing.assert_close(edit.directions[0, 0], source.directions["median, benign rank 2"].main[2])


def test_an_inner_solve_goes_in_rounds_at_its_price(
    llama: Model, rows: list[list[int]], source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(llama, rows, source, tmp_path)
    asked: list[Any] = []
    honest = Solver.descend

    def descend(self: Any, families: Any, theta: Any, price: float, steps: int, *rest: Any) -> Any:
        asked.append((theta.clone(), price, steps))
        return honest(self, families, theta, price, steps, *rest)

    monkeypatch.setattr(Solver, "descend", descend)
    dear, cheap = (study.solve({**CHOSEN, "price": price}) for price in (0.5, 0.05))
    assert len(asked) == 2 * CONFIG.outer.rounds
    assert not torch.equal(asked[0][0], asked[1][0])  # from where the round before ended
    assert torch.equal(asked[0][0], asked[2][0])
    assert {steps for _, _, steps in asked} == {CONFIG.gradient.steps}
    assert asked[0][1] == asked[1][1] == dear.price == pytest.approx(10 * cheap.price)
    typical = Solver(fresh_proxy(llama, rows), "suppress", CONFIG.gradient, 0)
    only = replace(source, directions={AS_SET: source.directions[AS_SET]})
    unit = screen(typical, families(only, CONFIG.space, (False,), typical.proxy.sites)).unit
    assert dear.price == pytest.approx(0.5 * unit)


def test_the_space_has_every_choice_and_no_estimator_where_directions_are_given(source: Source) -> None:
    trial = First()
    assert isinstance(trial, Trial)
    assert set(OuterSpace(CONFIG, source, (False, True)).suggest(trial)) == set(CHOSEN)
    assert trial.asked["estimator"] == ["mean", "median"]
    assert trial.asked["affine"] == [False, True]
    assert trial.asked["price"] == (0.01, 1.0, True)
    given = OuterSpace(CONFIG, make_source([AS_SET]), (False,)).suggest(First())
    assert set(CHOSEN) - set(given) == {"estimator", "orthogonalize", "benign_rank"}


def test_a_study_that_is_stopped_ends_as_if_it_had_not_been(
    llama: Model, rows: list[list[int]], source: Source, tmp_path: Path
) -> None:
    proxy = fresh_proxy(llama, rows)

    def study(name: str, **changes: Any) -> Found:
        (tmp_path / name).mkdir(exist_ok=True)
        return find(make_job(proxy, source, tmp_path / name, **changes))

    whole = study("whole")
    assert len(whole.candidates) == 4
    assert len({candidate.choices["price"] for candidate in whole.candidates}) == 4
    assert all(candidate.spec.strengths for candidate in whole.candidates)
    assert whole.about["method"] == "outer"
    assert study("parts", n_trials=2).candidates == whole.candidates[:2]
    assert study("parts") == whole


def test_a_study_that_is_complete_asks_the_model_nothing(
    llama: Model, rows: list[list[int]], source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(fresh_proxy(llama, rows), source, tmp_path, n_trials=2)
    found = find(job)

    def asked(*args: Any) -> None:
        raise UserError("the model was asked")

    monkeypatch.setattr("iconoclast_tl.search.by_outer.OuterStudy", asked)
    monkeypatch.setattr("iconoclast_tl.search.job.Objective", asked)
    assert find(job) == found
    with pytest.raises(UserError, match="was asked"):
        find(replace(job, config=job.config.model_copy(update={"n_trials": 3})))


def test_a_point_without_a_direction_is_left_out_and_named(
    llama: Model, rows: list[list[int]], source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zero = {name: replace(one, vectors=torch.zeros_like(one.vectors)) for name, one in source.directions.items()}
    partly = replace(source, directions={**zero, AS_SET: source.directions[AS_SET]})
    with pytest.raises(RuntimeError, match="failed in a row"):
        find(make_job(fresh_proxy(llama, rows), partly, tmp_path, n_trials=5))
    told = ("there is no direction at residual point", "no layer has a direction of its own")
    assert [sum(line in message for message in caplog.messages) for line in told] == [3, 2]
