"""The search by TPE: Optuna over the kernel space, every trial's edit scored on val."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iconoclast_tl.search.job import Found, Job
from iconoclast_tl.search.space import Choices, KernelSpace, spec_of, suggest
from iconoclast_tl.search.study import TrialOutcome, run_study
from iconoclast_tl.search.warm_start import first_trials


def by_tpe(job: Job) -> Found:
    """Run, or finish, the study; where the job has a warm start its trials come first."""
    n_layers, space = job.source.n_layers, job.config.space.for_goal(job.config.goal)

    def score(batch: Sequence[Choices]) -> list[TrialOutcome]:
        specs = [spec_of(choices, job.source.edit) for choices in batch]
        scores = job.objective([job.source.build(spec) for spec in specs])
        return [TrialOutcome(spec, one) for spec, one in zip(specs, scores, strict=True)]

    start = _start(job, space, n_layers)
    found = run_study(
        job.journal, job.config, job.seed, lambda trial: suggest(trial, space, n_layers), score, job.track, start
    )
    about: dict[str, Any] = {"method": "tpe", "goal": job.config.goal, "trials": len(found)}
    if job.warm_start is not None:
        ratio = round(job.warm_start.profile.attention_to_mlp, 3)
        about["warm_start"] = {"family": job.warm_start.family, "trials": len(start), "attention_to_mlp": ratio}
    return job.found(found, about)


def _start(job: Job, space: KernelSpace, n_layers: int) -> list[Choices]:
    """The first trials; when the study begins, a line says whose profile they follow."""
    if job.warm_start is None:
        return []
    start = first_trials(job.warm_start.profile, space, job.config.goal, n_layers)
    if not job.journal.exists():
        job.say(f"warm start: {job.warm_start}, {len(start)} trial{'s' if len(start) > 1 else ''}")
    return start
