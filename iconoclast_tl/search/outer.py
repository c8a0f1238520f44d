"""The outer study: what has no gradient is chosen by Optuna, what has one is solved for inside every trial.

A trial chooses the estimator, its filters, scope and source point of the directions, plain or affine, profile, row
normalisation, and a price of the KL. Its inner solve is a few steps of Adam on the strengths at that price
(`search.solver`), from the same start and the same prompts in every trial, so that a trial is a function of its
parameters alone. The edit is then scored on val like every other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.sets import AS_SET, set_name
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.search.config import SearchConfig
from iconoclast_tl.search.families import Source, families, family
from iconoclast_tl.search.objective import Objective
from iconoclast_tl.search.proxy import Proxy
from iconoclast_tl.search.solver import Solver, screen
from iconoclast_tl.search.space import Trial, suggest_direction
from iconoclast_tl.search.study import Outcome
from iconoclast_tl.search.trace import Point


@dataclass(frozen=True)
class OuterSpace:
    """What a trial may choose."""

    config: SearchConfig
    source: Source
    affine: Sequence[bool]
    """Kinds of edit."""

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Ask a trial for all of it."""
        outer, (strict, loose, _) = self.config.outer, self.config.gradient.prices
        choices: dict[str, Sequence[Any]] = {
            "affine": self.affine,
            "profile": outer.profiles,
            "row_normalization": outer.row_normalizations,
        }
        if set(self.source.directions) != {AS_SET}:
            choices |= {
                "estimator": outer.estimators,
                "orthogonalize": (False, True),
                "benign_rank": outer.benign_ranks,
            }
        parameters = suggest_direction(trial, self.config.space, self.source.n_layers)
        parameters |= {name: trial.suggest_categorical(name, list(values)) for name, values in choices.items()}
        return parameters | {"price": trial.suggest_float("price", loose, strict, log=True)}


class OuterStudy:
    """The inner solves of one study."""

    def __init__(
        self, new_proxy: Callable[[], Proxy], source: Source, config: SearchConfig, seed: int, objective: Objective
    ) -> None:
        """new_proxy: one that knows what the base says and nothing else."""
        self._new_proxy, self._source, self._config, self._seed = new_proxy, source, config, seed
        self._objective = objective
        self._unit = self._measure_unit()

    def score(self, batch: Sequence[dict[str, Any]]) -> list[Outcome]:
        """Solve for the strengths of every trial; score the edits on val together."""
        points = [self.solve(parameters) for parameters in batch]
        scores = self._objective([self._source.build(point.parameters) for point in points])
        return [
            Outcome(point.parameters, score, point.proxy_rate, point.said.behaviour_rate)
            for point, score in zip(points, scores, strict=True)
        ]

    def solve(self, chosen: dict[str, Any]) -> Point:
        """The strengths for what a trial chose; with them, its parameters are those of an edit."""
        gradient = self._config.gradient.model_copy(update={"profile": chosen["profile"]})
        proxy = self._new_proxy()
        solver = Solver(proxy, self._config.goal, gradient, self._seed)
        estimated = {name: chosen[name] for name in ("estimator", "orthogonalize", "benign_rank") if name in chosen}
        name = set_name(DirectionConfig(**estimated)) if estimated else AS_SET
        try:
            mine = family(self._source, {**chosen, "directions": name}, proxy.sites)
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
