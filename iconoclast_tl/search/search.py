"""A search, whichever its method: from prompts and directions to candidates that were generated from on val."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.models.hook_points import HookedModule
from iconoclast_tl.models.sites import Site
from iconoclast_tl.scores.first_tokens import FirstTokens, first_tokens
from iconoclast_tl.search.config import SearchConfig
from iconoclast_tl.search.families import Source, families, family_name
from iconoclast_tl.search.gradient import GradientSearch, Say
from iconoclast_tl.search.objective import Goal, Objective, Scores
from iconoclast_tl.search.outer import OuterSpace, OuterStudy
from iconoclast_tl.search.pareto import Candidate
from iconoclast_tl.search.proxy import Proxy
from iconoclast_tl.search.solver import Solver
from iconoclast_tl.search.space import KernelSpace, suggest
from iconoclast_tl.search.study import Outcome, Score, Suggest, run_study
from iconoclast_tl.search.trace import Point, Trace, read_trace, write_trace
from iconoclast_tl.search.warm_start import WarmStart, first_trials


@dataclass(frozen=True)
class Job:
    """All that a search needs."""

    sites: Mapping[Site, HookedModule]
    train: Baseline
    """What a gradient sees."""
    val: Baseline
    """What every candidate is confirmed on."""
    source: Source
    config: SearchConfig
    seed: int
    journal: Path
    """Where a study keeps its trials."""
    trace: Path
    """Where a gradient keeps its points."""
    affine: tuple[bool, ...] = (False, True)
    """Kinds of edit that may compete in a gradient."""
    track: Track = silent
    say: Say = field(default=lambda line: None)
    warm_start: WarmStart | None = None
    """Where a search over kernels starts, if not at random."""

    @cached_property
    def objective(self) -> Objective:
        """Made when it is first asked: a search that is complete asks the model nothing."""
        require_open(self.val, "val", self.config.goal)
        return Objective(self.val, self.sites)


@dataclass(frozen=True)
class Found:
    """What a search found."""

    candidates: list[Candidate]
    """Confirmed by generation on val."""
    about: dict[str, Any]
    """For results.json: the method, and what is proxy and what confirmed."""


def find(job: Job) -> Found:
    """Run, or finish, the search that the settings name."""
    return {"gradient": _by_gradient, "tpe": _by_tpe, "outer": _by_outer}[job.config.method](job)


def _by_tpe(job: Job) -> Found:
    n_layers, space = job.source.n_layers, job.config.space.for_goal(job.config.goal)

    def score(batch: Sequence[dict[str, Any]]) -> list[Outcome]:
        scores = job.objective([job.source.build(parameters) for parameters in batch])
        return [Outcome(parameters, one) for parameters, one in zip(batch, scores, strict=True)]

    start = _start(job, space, n_layers)
    found = _study(job, lambda trial: suggest(trial, space, n_layers), score, start)
    about: dict[str, Any] = {"method": "tpe", "goal": job.config.goal, "trials": len(found)}
    if job.warm_start is not None:
        ratio = round(job.warm_start.profile.attention_to_mlp, 3)
        about["warm_start"] = {"family": job.warm_start.family, "trials": len(start), "attention_to_mlp": ratio}
    return Found(found, about)


def _start(job: Job, space: KernelSpace, n_layers: int) -> list[dict[str, Any]]:
    """The first trials; whose profile they are is said when the study begins."""
    if job.warm_start is None:
        return []
    start = first_trials(job.warm_start.profile, space, job.config.goal, n_layers)
    if not job.journal.exists():
        job.say(f"warm start: {job.warm_start}, {len(start)} trial{'s' if len(start) > 1 else ''}")
    return start


def _by_outer(job: Job) -> Found:
    space = OuterSpace(job.config, job.source, job.affine)
    inner: list[OuterStudy] = []  # made when it is first needed: a study that is complete asks the model nothing

    def score(batch: Sequence[dict[str, Any]]) -> list[Outcome]:
        if not inner:
            tokens = _scored_tokens(job, _told_first_tokens(job))
            new_proxy = partial(_proxy, job, tokens)
            inner.append(OuterStudy(new_proxy, job.source, job.config, job.seed, job.objective))
        return inner[0].score(batch)

    found = _study(job, space.suggest, score)
    rates = [(c.proxy_rate, c.scores.behaviour_rate) for c in found if c.proxy_rate is not None]
    about: dict[str, Any] = {"method": "outer", "goal": job.config.goal, "trials": len(found)}
    about["proxy_rank_correlation"] = {"train": None, "val": _rank_correlation(rates)}
    return Found(changing(found), about)


def _tell_of_no_gain(job: Job, scores: Sequence[Scores | None]) -> None:
    best = min((one.shortfall(job.config.goal) for one in scores if one is not None), default=1.0)
    if best >= job.objective.base_scores.shortfall(job.config.goal):
        job.say("warning: no edit that was found serves the goal on val any better than the base does")


def changing(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without those of a price so dear that every strength is 0: they leave the base, which is no edit."""
    found = [one for one in candidates if any(map(_any, one.parameters["strengths"].values()))]
    if not found:
        raise UserError(
            "no strengths change the behaviour",
            got=f"{len(candidates)} candidates, every strength 0",
            mend="lower search.gradient.prices, or choose other directions",
        )
    return found


def _any(strengths: Sequence[Any]) -> bool:
    """Whether one is not zero, of layers or of heads."""
    return any(any(one) if isinstance(one, list) else one for one in strengths)


def _study(job: Job, suggest: Suggest, score: Score, start: Sequence[Mapping[str, Any]] = ()) -> list[Candidate]:
    return run_study(job.journal, job.config, job.seed, suggest, score, job.track, start)


def _by_gradient(job: Job) -> Found:
    trace, about = read_trace(job.trace)
    if trace is None or not trace.done:
        trace, about = _traced(job, trace)
    points = trace.points
    if "confirmed" not in about:
        front = proxy_front(points, job.config.goal)
        edits = [job.source.build(points[number].parameters) for number in front]
        found = dict(zip(front, job.objective.confirm(edits, job.config.goal, job.config.kl), strict=True))
        scores = [found.get(number) for number in range(len(points))]
        _tell_of_no_gain(job, scores)
        about = {**about, "confirmed": [one and one.to_json() for one in scores]}
        about["proxy_rank_correlation"] = agreement(points, scores)
        write_trace(job.trace, trace, about)
    confirmed = [one and Scores(**one) for one in about["confirmed"]]
    candidates = [
        Candidate(number, point.parameters, scores, point.proxy_rate, point.said.behaviour_rate)
        for number, (point, scores) in enumerate(zip(points, confirmed, strict=True))
        if scores is not None
    ]
    return Found(changing(candidates), {**about, "points": [_shown(point) for point in points]})


def _traced(job: Job, kept: Trace | None) -> tuple[Trace, dict[str, Any]]:
    config = job.config.gradient
    _ = job.objective  # what val cannot tell is told before the search
    tokens = _told_first_tokens(job)
    proxy = _proxy(job, _scored_tokens(job, tokens))
    competing = families(job.source, job.config.space, job.affine, job.sites)
    about = {
        "method": "gradient",
        "goal": job.config.goal,
        "profile": config.profile,
        "objective": config.objective,
        "families": len(competing),
        "first_tokens": tokens.to_json(),
    }
    search = GradientSearch(
        Solver(proxy, job.config.goal, config, job.seed, _n_heads(job)),
        job.say,
        on_val=lambda parameters: job.objective.shortfall(job.source.build(parameters), job.config.goal),
        keep=lambda trace: write_trace(job.trace, trace, about),
    )
    return search.run(competing, kept, job.track), about


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


def _scored_tokens(job: Job, tokens: FirstTokens) -> Tensor | None:
    if job.config.gradient.objective == "sequence":
        return None
    if not len(tokens.ids):
        raise UserError(
            "no first token is likelier on target prompts than on neutral ones",
            mend="use search.gradient.objective=sequence, or name them in search.gradient.tokens",
        )
    return tokens.ids


def require_open(base: Baseline, split: str, goal: Goal) -> None:
    """Raise `UserError` where the base shows the behaviour never, or always and it is to be strengthened."""
    base.require_shown(split)
    shows = base.shows["target"]
    if goal == "strengthen" and all(shows):
        raise UserError(
            "the model always shows the behaviour",
            got=f"{len(shows)} of {len(shows)} {split} target prompts",
            want="some at which it does not, to strengthen it there",
            mend="give other --target prompts, or pass --goal suppress",
        )


def _proxy(job: Job, tokens: Tensor | None) -> Proxy:
    require_open(job.train, "train", job.config.goal)
    return Proxy(job.train, job.sites, job.config.gradient.temperature, tokens)


def _told_first_tokens(job: Job) -> FirstTokens:
    tokens = first_tokens(job.train, job.config.gradient.tokens)
    if not len(tokens.ids):
        job.say("no first token is likelier on target prompts than on neutral ones")
        return tokens
    job.say(f"first tokens of the behaviour: {' '.join(map(repr, tokens.words))} (AUROC {tokens.auroc:.2f})")
    if tokens.auroc < 0.6:
        job.say("warning: target and neutral prompts can hardly be told apart by what the model says first")
    return tokens


def agreement(points: Sequence[Point], scores: Sequence[Scores | None]) -> dict[str, float | None]:
    """Spearman's rank correlation of proxy and generated behaviour rate: on the train prompts of every point, that both
    were asked, and from train to val over the points that were confirmed.
    """
    confirmed = [(p.proxy_rate, s.behaviour_rate) for p, s in zip(points, scores, strict=True) if s is not None]
    return {
        "train": _rank_correlation([(point.proxy_rate, point.said.behaviour_rate) for point in points]),
        "val": _rank_correlation(confirmed),
    }


def _rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """None where there is none to speak of: fewer than three pairs, or one side all the same."""
    from scipy.stats import spearmanr

    if len(pairs) < 3 or any(len({pair[side] for pair in pairs}) == 1 for side in (0, 1)):
        return None
    proxies, rates = zip(*pairs, strict=True)
    return float(spearmanr(proxies, rates).statistic)


def _shown(point: Point) -> dict[str, Any]:
    return {
        "family": family_name(point.parameters),
        "price": point.price,
        "proxy_behaviour_rate": point.proxy_rate,
        "proxy_kl": point.proxy_kl,
        "on_policy": asdict(point.said),
        "val_missed": point.val_missed,
    }
