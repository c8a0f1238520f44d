"""The search methods by name: every one is a function from a `Job` to what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeVar

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.registry import Registry, called
from iconoclast_tl.search.by_gradient import by_gradient
from iconoclast_tl.search.by_outer import by_outer
from iconoclast_tl.search.by_tpe import by_tpe
from iconoclast_tl.search.job import Found, Job

SearchMethod = Callable[[Job], Found]
"""Runs a search, or finishes one that was stopped, from the files that the job names."""

METHODS: Final = Registry[SearchMethod](
    "search method", "iconoclast_tl.searches", {"gradient": by_gradient, "tpe": by_tpe, "outer": by_outer}
)
Function = TypeVar("Function", bound=Callable[..., Any])


def search_method(name: str) -> Callable[[Function], Function]:
    """A decorator that makes a function a search method by this name, for `search.method` and `--search`.

        from iconoclast_tl.search.pareto import Candidate
        from iconoclast_tl.search.spec import EditSpec

        @itl.search_method("coarse")
        def coarse(job):
            specs = [EditSpec(...), ...]
            scores = job.objective([job.source.build(spec) for spec in specs])  # generates on val
            found = [Candidate(number=i, spec=spec, scores=one) for i, (spec, one) in enumerate(zip(specs, scores))]
            return job.found(found, {"tried": len(specs)})

    It is given a `search.job.Job`, and returns what `job.found` makes: candidates that were generated from on val, and
    what results.json says of the search. One that takes long keeps what it has in `job.trace` or `job.journal`.
    Raises `UserError` for a name that is taken; when it is used, for an error that it raises or anything else returned.
    """

    def decorate(function: Function) -> Function:
        METHODS.add(name, function, function)
        return function

    return decorate


def find(job: Job) -> Found:
    """Run, or finish, the search that the settings name."""
    name = job.config.method
    method = METHODS.require(name)
    if name not in METHODS.origins:
        return method(job)
    what = f"the search method {name}"
    found: Any = called(what, method, job)
    if not isinstance(found, Found):
        raise UserError(f"{what} returns nothing found", got=type(found).__name__, want="what job.found(…) makes")
    return replace(found, about={**found.about, "method": name, "goal": job.config.goal})
