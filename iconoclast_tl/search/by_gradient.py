"""The search by gradient: a price sweep on train prompts, whose best points are confirmed on val."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from iconoclast_tl.search.families import families
from iconoclast_tl.search.job import Found, Job
from iconoclast_tl.search.objective import Goal, OnTrain, ValScores
from iconoclast_tl.search.pareto import Candidate, changing
from iconoclast_tl.search.rank_correlation import rank_correlation
from iconoclast_tl.search.solver import Solver
from iconoclast_tl.search.sweep import PriceSweep
from iconoclast_tl.search.trace import Point, Trace, read_trace, write_trace


def by_gradient(job: Job) -> Found:
    """Run the sweep, or the rest of one that was stopped, and confirm the proxy's front on val."""
    trace, about = read_trace(job.trace)
    if trace is None or not trace.done:
        trace, about = _traced(job, trace)
    points = trace.points
    if "confirmed" not in about:
        about = _confirmed(job, points, about)
        write_trace(job.trace, trace, about)
    confirmed = [one and ValScores(**one) for one in about["confirmed"]]
    candidates = [
        Candidate(
            number=number,
            spec=point.spec,
            scores=scores,
            proxy_rate=point.proxy_rate,
            train_rate=point.said.behaviour_rate,
            train_broken_rate=point.said.broken_rate,
            train_n=point.said.n,
        )
        for number, (point, scores) in enumerate(zip(points, confirmed, strict=True))
        if scores is not None
    ]
    return job.found(changing(candidates), {**about, "points": [_shown(point) for point in points]})


def _confirmed(job: Job, points: Sequence[Point], about: dict[str, Any]) -> dict[str, Any]:
    """`about` with the val scores of the proxy's front, None for all other points."""
    front = proxy_front(points, job.config.goal)
    edits = [job.source.build(points[number].spec) for number in front]
    n = [len(job.val.suite[side].rows) for side in ("target", "neutral")]
    job.say(f"confirming {len(front)} of {len(points)} points on val: {n[0]} target and {n[1]} neutral prompts")
    goal = job.config.goal
    on_train = [OnTrain(points[number].said.shortfall(goal), points[number].proxy_kl) for number in front]
    found = dict(zip(front, job.objective.confirm(edits, on_train, goal), strict=True))
    scores = [found.get(number) for number in range(len(points))]
    _warn_of_no_gain(job, scores)
    confirmed = [one and one.to_json() for one in scores]
    return {**about, "confirmed": confirmed, "proxy_rank_correlation": proxy_correlation(points, scores)}


def _warn_of_no_gain(job: Job, scores: Sequence[ValScores | None]) -> None:
    best = min((one.shortfall(job.config.goal) for one in scores if one is not None), default=1.0)
    if best >= job.objective.base_scores.shortfall(job.config.goal):
        job.say("warning: no edit comes closer to the goal on val than the unedited model")


def _traced(job: Job, kept: Trace | None) -> tuple[Trace, dict[str, Any]]:
    config = job.config.gradient
    _ = job.objective  # a val split on which nothing can be found is reported before the sweep
    tokens = job.first_tokens()
    proxy = job.new_proxy(None if tokens is None else tokens.ids)
    if tokens is None:
        job.say_how_it_begins(proxy)
    competing = families(job.source, job.config.space, job.affine, job.sites)
    about = {
        "method": "gradient",
        "goal": job.config.goal,
        "profile": config.profile,
        "objective": config.objective,
        "families": len(competing),
        "max_new_tokens": job.val.config.max_new_tokens,
        **({} if tokens is None else {"first_tokens": tokens.to_json()}),
    }
    sweep = PriceSweep(
        Solver(proxy, job.config.goal, config, job.seed, _n_heads(job)),
        job.say,
        on_val=lambda spec: job.objective.shortfall(job.source.build(spec), job.config.goal),
        keep=lambda trace: write_trace(job.trace, trace, about),
    )
    return sweep.run(competing, kept, job.track), about


def _n_heads(job: Job) -> int:
    """Strengths that a layer's attention has."""
    return job.source.ground.parts["attn_out"].shape[1] if job.config.gradient.profile == "head" else 1


def proxy_front(points: Sequence[Point], goal: Goal) -> list[int]:
    """The points that no other beats in proxy rate and proxy KL together; only these are generated from."""

    def missed(point: Point) -> float:
        return point.proxy_rate if goal == "suppress" else 1 - point.proxy_rate

    return [
        number
        for number, one in enumerate(points)
        if not any(
            missed(o) <= missed(one)
            and o.proxy_kl <= one.proxy_kl
            and (missed(o), o.proxy_kl) != (missed(one), one.proxy_kl)
            for o in points
        )
    ]


def proxy_correlation(points: Sequence[Point], scores: Sequence[ValScores | None]) -> dict[str, float | None]:
    """Spearman's rank correlation of proxy and generated behaviour rate.

    `train`: on the train prompts, over all points. `val`: from train to val, over the points that were confirmed.
    """
    confirmed = [(p.proxy_rate, s.behaviour_rate) for p, s in zip(points, scores, strict=True) if s is not None]
    return {
        "train": rank_correlation([(point.proxy_rate, point.said.behaviour_rate) for point in points]),
        "val": rank_correlation(confirmed),
    }


def _shown(point: Point) -> dict[str, Any]:
    return {
        "family": str(point.spec),
        "price": point.price,
        "proxy_behaviour_rate": point.proxy_rate,
        "proxy_kl": point.proxy_kl,
        "on_policy": asdict(point.said),
        "val_missed": point.val_missed,
    }
