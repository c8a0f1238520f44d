"""The outer study: what has no gradient is chosen by Optuna, what has one is solved for inside every trial.

A trial chooses the estimator, its filters, scope and source point of the directions, plain or affine, profile, row
normalisation, and a price of the KL. Its inner solve is a few steps of Adam on the strengths at that price
(`search.solver`), from the same start and the same prompts in every trial, so that a trial is a function of its
parameters alone. The edit is then scored on val like every other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.sets import AS_SET, set_name
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.search.config import SearchConfig
from iconoclast_tl.search.families import Source, families, family
from iconoclast_tl.search.job import Found, Job
from iconoclast_tl.search.objective import Objective
from iconoclast_tl.search.pareto import changing
from iconoclast_tl.search.proxy import Proxy
from iconoclast_tl.search.rank_correlation import rank_correlation
from iconoclast_tl.search.solver import Solver, screen
from iconoclast_tl.search.space import Choices, Trial, spec_of, suggest_direction
from iconoclast_tl.search.study import TrialOutcome, run_study
from iconoclast_tl.search.trace import Point


def by_outer(job: Job) -> Found:
    """Run, or finish, the study."""
    space = OuterSpace(job.config, job.source, job.affine)
    inner: list[OuterStudy] = []  # made on first use: a study that is complete does not run the model

    def score(batch: Sequence[Choices]) -> list[TrialOutcome]:
        if not inner:
            new_proxy = partial(job.new_proxy, None if (tokens := job.first_tokens()) is None else tokens.ids)
            inner.append(OuterStudy(new_proxy, job.source, job.config, job.seed, job.objective))
        return inner[0].score(batch)

    found = run_study(job.journal, job.config, job.seed, space.suggest, score, job.track)
    rates = [(c.proxy_rate, c.scores.behaviour_rate) for c in found if c.proxy_rate is not None]
    about: dict[str, Any] = {"method": "outer", "goal": job.config.goal, "trials": len(found)}
    about["proxy_rank_correlation"] = {"train": None, "val": rank_correlation(rates)}
    return job.found(changing(found), about)


@dataclass(frozen=True)
class OuterSpace:
    """What a trial may choose."""

    config: SearchConfig
    source: Source
    affine: Sequence[bool]
    """Kinds of edit."""

    def suggest(self, trial: Trial) -> Choices:
        """Ask a trial for all of it."""
        outer, (strict, loose, _) = self.config.outer, self.config.gradient.prices
        offered: dict[str, Sequence[Any]] = {
            "affine": self.affine,
            "profile": outer.profiles,
            "row_normalization": outer.row_normalizations,
        }
        if set(self.source.directions) != {AS_SET}:
            offered |= {
                "estimator": outer.estimators,
                "orthogonalize": (False, True),
                "benign_rank": outer.benign_ranks,
            }
        choices = suggest_direction(trial, self.config.space, self.source.n_layers)
        choices |= {name: trial.suggest_categorical(name, list(values)) for name, values in offered.items()}
        return choices | {"price": trial.suggest_float("price", loose, strict, log=True)}


class OuterStudy:
    """Solves for the strengths of each trial, and scores the edits on val."""

    def __init__(
        self, new_proxy: Callable[[], Proxy], source: Source, config: SearchConfig, seed: int, objective: Objective
    ) -> None:
        """new_proxy: makes a proxy that knows the base's responses and nothing else."""
        self._new_proxy, self._source, self._config, self._seed = new_proxy, source, config, seed
        self._objective = objective
        self._unit = self._measure_unit()

    def score(self, batch: Sequence[Choices]) -> list[TrialOutcome]:
        """Solve for the strengths of every trial; score the edits on val together."""
        points = [self.solve(choices) for choices in batch]
        scores = self._objective([self._source.build(point.spec) for point in points])
        return [
            TrialOutcome(point.spec, score, point.proxy_rate, point.said.behaviour_rate)
            for point, score in zip(points, scores, strict=True)
        ]

    def solve(self, chosen: Choices) -> Point:
        """The strengths for what a trial chose.

        Raises `ArithmeticError` where there is no direction, or no finite loss: such a trial fails, the study goes on.
        """
        gradient = self._config.gradient.model_copy(update={"profile": chosen["profile"]})
        proxy = self._new_proxy()
        solver = Solver(proxy, self._config.goal, gradient, self._seed)
        estimated = {name: chosen[name] for name in ("estimator", "orthogonalize", "benign_rank") if name in chosen}
        name = set_name(DirectionConfig(**estimated)) if estimated else AS_SET
        spec = replace(spec_of(chosen, self._source.edit), directions=name)
        try:
            mine = family(self._source, spec, proxy.sites)
        except UserError as error:  # no direction there: a choice of this trial alone, and no end of the study
            raise ArithmeticError(str(error)) from error
        if not mine.updates.at:
            raise ArithmeticError("no layer has a direction of its own")
        theta, price = solver.profile.start(1), self._unit * chosen["price"]
        for _ in range(self._config.outer.rounds):
            theta, losses = solver.descend([mine], theta, price, gradient.steps)
            if not bool(losses.isfinite().all()) or not bool(theta.isfinite().all()):
                raise ArithmeticError("the loss is not finite")
            point = solver.point(mine, theta, price)
        return point

    def _measure_unit(self) -> float:
        """Of prices: what a typical direction costs, of plain edits by the directions as they are set."""
        as_set = replace(self._source, directions={AS_SET: self._source.directions[AS_SET]})
        proxy = self._new_proxy()
        solver = Solver(proxy, self._config.goal, self._config.gradient, self._seed)
        found = screen(solver, families(as_set, self._config.space, (False,), proxy.sites))
        if not found.unit < float("inf"):
            raise UserError("no candidate direction gives a finite loss", mend="load the model in a wider --dtype")
        return found.unit
