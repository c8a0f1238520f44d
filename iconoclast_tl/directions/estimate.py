"""From residuals to unit directions, point by point: winsorisation, estimator, filters, orthonormalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from iconoclast_tl.activations.store import Activations, Residuals
from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.estimators.registry import ESTIMATORS
from iconoclast_tl.directions.estimators.sample import Estimate, Estimator, Fact, Sample, Unsuited, towards
from iconoclast_tl.directions.filters import filter_basis, winsorized
from iconoclast_tl.directions.geometry import normalize, orthonormalize, project_out
from iconoclast_tl.directions.separation import separation
from iconoclast_tl.directions.span import Span, span_of
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Say, Track, silent, unheard
from iconoclast_tl.foundation.stage_config import validated

IDLE: Final = ("selection", "refine", "refine_gain", "compare", "resamples", "file")
"""Settings of directions that are of a run, and no matter of one estimate."""
Picked = tuple[Tensor, Tensor]
"""Numbers of target and of neutral prompts, with repetition."""
ROUNDING = 1e-6
"""Relative size under which a difference of float32 activations is rounding."""


def estimate(
    acts: Activations,
    estimator: str = "mean",
    *,
    orthogonalize: bool = False,
    benign_rank: int = 0,
    labels: Sequence[bool] | Tensor | None = None,
    position: int = -1,
    track: Track = silent,
    say: Say = unheard,
    **settings: Any,
) -> Directions:
    """Unit directions of the behaviour at every residual point, with how well each separates held-out prompts.

    d = estimator(B, G) of the train prompts' residuals at `position` (−1: the last token), filtered and normalised as
    `estimate_directions` has it; `separation` is d′ of the val prompts along d; `directions.best` is a good point.

    estimator: a name in `ESTIMATORS`, your own included (`itl.estimator`). orthogonalize: project the neutral mean out.
    benign_rank: project out so many principal directions of the neutral residuals. labels: whether the response to each
    train prompt showed the behaviour, target prompts first, for estimators that go by it (`probe`). say: is told where
    an estimator fell back on another, and why. settings: more of `DirectionConfig` (`components`, `winsorize`, …).

    Raises `UserError` for an estimator that there is not, settings that do not fit, labels that are missing or do not
    match, too few prompts, residuals that were not collected, and prompts between which nothing differs.
    """
    given = {"estimator": estimator, "orthogonalize": orthogonalize, "benign_rank": benign_rank, **settings}
    if idle := [name for name in settings if name in (*IDLE, "position")]:
        wanted = [name for name in DirectionConfig.model_fields if name not in (*IDLE, "position")]
        raise UserError(f"no setting of an estimate: {', '.join(idle)}", want=f"one of {', '.join(wanted)}")
    config = validated(DirectionConfig, given)
    residuals = acts.at(position)
    _require_points(residuals)
    shown = _labels(labels, config, len(residuals.target_train), len(residuals.neutral_train))
    found = estimate_directions(residuals.target_train, residuals.neutral_train, config, shown, track)
    if not bool(found.vectors.any()):
        raise nothing_differs(config)
    about = {
        "fingerprint": acts.fingerprint,
        "directions": config.model_dump(mode="json", exclude=set(IDLE)),
        "selection": {"position": position},
    }
    directions = with_separation(found, residuals, config, about)
    for line in directions.provenance["notes"]:
        say(line)
    return directions


def with_separation(
    found: Estimated, residuals: Residuals, config: DirectionConfig, about: Mapping[str, Any]
) -> Directions:
    """What was estimated as `Directions`, with d′ on the val prompts; `about` goes into their provenance."""
    apart = separation(found.vectors[0], residuals.target_val, residuals.neutral_val)
    digest = ESTIMATORS[config.estimator].digest
    more = {"facts": [dict(facts) for facts in found.facts], "notes": found.notes(config.estimator, config.fallback)}
    more |= {} if digest is None else {"code": digest}
    return Directions(found.vectors, apart, found.weights, {**about, **more})


def nothing_differs(config: DirectionConfig) -> UserError:
    """What to say where there is no direction at any point."""
    if config.orthogonalize or config.benign_rank:
        return UserError(
            "no direction is left",
            got=f"filters that project out {config.benign_rank} benign directions"
            f"{' and the neutral mean' if config.orthogonalize else ''}, or prompts that the model does not tell apart",
            mend="lower --benign-rank, or pass other prompts",
        )
    return UserError(
        "target and neutral prompts hold the same activations everywhere",
        want="prompts that the model tells apart at their last token",
    )


def _require_points(residuals: Residuals) -> None:
    n_points = residuals.target_train.shape[1]
    if n_points < 2:
        raise UserError(
            "the activations are of no model", got=f"{n_points} residual points", want="one a layer, and one"
        )
    held_out = len(residuals.target_val), len(residuals.neutral_val)
    if not all(held_out):
        raise UserError(
            "there are no val prompts to separate",
            got=f"{held_out[0]} target and {held_out[1]} neutral ones",
            mend="collect with a contrast set that has some",
        )


def _labels(
    labels: Sequence[bool] | Tensor | None, config: DirectionConfig, n: int, m: int
) -> Bool[Tensor, "rows"] | None:
    if labels is None:
        if ESTIMATORS[config.estimator].labels:
            raise UserError(
                f"the estimator {config.estimator} goes by what the model did",
                got="no labels",
                want=f"labels={n + m} truth values, target train prompts first",
            )
        return None
    found = torch.as_tensor(labels)
    if found.shape != (n + m,) or found.dtype != torch.bool:
        raise UserError(
            "the labels are not those of the train prompts",
            got=f"{tuple(found.shape)} of {found.dtype}",
            want=f"{n} of target and {m} of neutral prompts, as truth values",
        )
    return found


@dataclass(frozen=True)
class Estimated:
    """What one estimator found at every residual point."""

    vectors: Float[Tensor, "k point d_model"]
    """Orthonormal at each point, float32, the main direction first; zero where there is none."""
    weights: Float[Tensor, "k point"]
    """Of the strengths by each, relative to the main one's; 0 where there is none."""
    facts: tuple[Mapping[str, Fact], ...]
    """What else is known of every point."""
    fallbacks: tuple[str | None, ...]
    """Of every point, why the fallback was asked."""

    def notes(self, name: str, fallback: str) -> list[str]:
        """What a user must be told: where and why another estimator was asked, and what had to be shrunk."""
        found = [
            f"{name} fell back to {fallback} at {_points(points)}: {reason}"
            for reason, points in _grouped(self.fallbacks)
        ]
        singular = _grouped([None if f.get("singular") is None else str(f["singular"]) for f in self.facts])
        found += [f"{name}: the covariance is singular at {_points(p)} ({why}) and was shrunk" for why, p in singular]
        skipped = [point for point, facts in enumerate(self.facts) if facts.get("skipped")]
        return found + ([f"{name}: small clusters were skipped at {_points(skipped)}"] if skipped else [])


def estimate_directions(
    target: Float[Tensor, "n point d_model"],
    neutral: Float[Tensor, "m point d_model"],
    config: DirectionConfig,
    shown: Bool[Tensor, "rows"] | None = None,
    track: Track = silent,
) -> Estimated:
    """Unit directions of every residual point by the estimator and filters of `config`.

    d = estimator(B, G) of winsorised residuals; then, as far as asked for, the neutral mean and the benign principal
    subspace are projected out; then each is turned towards the target prompts, and the directions of a point are
    orthonormalised, in their order. Points whose means
    are the same, such as the embedding of the template's last token, have no direction.

    shown: whether the response to each prompt showed the behaviour, target prompts first, for a probe. Raises
    `UserError` where an estimator needs more prompts.
    """
    return estimate_all(target, neutral, {"": config}, shown, track)[""]


def estimate_all(
    target: Float[Tensor, "n point d_model"],
    neutral: Float[Tensor, "m point d_model"],
    configs: Mapping[str, DirectionConfig],
    shown: Bool[Tensor, "rows"] | None = None,
    track: Track = silent,
) -> dict[str, Estimated]:
    """`estimate_directions` for several settings at once, by name; what they share is computed once a point."""
    for config in configs.values():
        require_prompts(config, len(target), len(neutral))
    found: dict[str, list[_AtPoint]] = {name: [] for name in configs}
    quantiles = {config.winsorize for config in configs.values()}
    for point in track(range(target.shape[1]), "estimate directions", target.shape[1]):
        here = {q: _residuals(target[:, point], neutral[:, point], shown, q) for q in quantiles}
        for name, config in configs.items():
            found[name].append(_estimate_at(here[config.winsorize], config))
    return {name: _gathered(at_points) for name, at_points in found.items()}


def stability(
    target: Float[Tensor, "n point d_model"],
    neutral: Float[Tensor, "m point d_model"],
    config: DirectionConfig,
    shown: Bool[Tensor, "rows"] | None = None,
    seed: int = 0,
    track: Track = silent,
) -> Float[Tensor, "point"]:
    """Mean |cosine| of the main direction with those of `config.resamples` bootstrap resamples of the prompts.

    1 where other prompts of the same kind would give the same direction; 0 where there is none.
    """
    generator = torch.Generator().manual_seed(seed)
    picks = [_picked(len(target), len(neutral), config, generator) for _ in range(config.resamples)]
    found = torch.zeros(target.shape[1], dtype=torch.float64)
    for point in track(range(target.shape[1]), "stability", target.shape[1]):
        here = _residuals(target[:, point], neutral[:, point], shown, config.winsorize)
        main = _estimate_at(here, config).vectors[0].double()
        others = torch.stack([_estimate_at(here, config, picked).vectors[0].double() for picked in picks])
        found[point] = (others @ main).abs().mean()
    return found


def _picked(n: int, m: int, config: DirectionConfig, generator: torch.Generator) -> Picked:
    """As many prompts of each side as there are; the same pairs for estimators that take them so."""
    if ESTIMATORS[config.estimator].paired:
        pairs = torch.randint(min(n, m), (min(n, m),), generator=generator)
        return pairs, pairs
    return torch.randint(n, (n,), generator=generator), torch.randint(m, (m,), generator=generator)


def require_prompts(config: DirectionConfig, n_target: int, n_neutral: int) -> None:
    """Raise `UserError` where there are fewer prompts than the estimator, or what it may fall back on, needs."""
    used = ESTIMATORS[config.estimator]
    fallback = used if used.steady else ESTIMATORS[config.fallback]
    least = max(used.least, fallback.least)
    if min(n_target, n_neutral) < least:
        raise UserError(
            f"the estimator {config.estimator if used.least == least else config.fallback} needs more prompts",
            got=f"{n_target} target and {n_neutral} neutral train prompts",
            want=f"at least {least} of each",
            mend="give more prompts or another --estimator",
        )


@dataclass(frozen=True)
class _AtPoint:
    vectors: Float[Tensor, "k d_model"]
    weights: Float[Tensor, "k"]
    facts: Mapping[str, Fact]
    fallback: str | None


@dataclass(frozen=True, eq=False)
class _Residuals:
    """The residuals of one point under one winsorisation, and their span, computed once for all estimators."""

    whole: Sample

    @cached_property
    def _span(self) -> Span:
        return span_of(self.whole.rows)

    @cached_property
    def _reduced(self) -> Sample:
        coordinates, n = self._span.coordinates, len(self.whole.target)
        return replace(self.whole, target=coordinates[:n], neutral=coordinates[n:])

    def in_span(self, estimator: Estimator, picked: Picked | None) -> bool:
        """Whether an estimator is given coordinates."""
        return estimator.turns and not (estimator.quick and picked is None)

    def of(self, estimator: Estimator, picked: Picked | None = None) -> Sample:
        """What an estimator is given."""
        sample = self._reduced if self.in_span(estimator, picked) else self.whole
        return sample if picked is None else sample.resampled(*picked)

    def back(
        self, vectors: Float[Tensor, "k d"], estimator: Estimator, picked: Picked | None
    ) -> Float[Tensor, "k d_model"]:
        """What it gave as vectors of the stream."""
        return self._span.back(vectors) if self.in_span(estimator, picked) else vectors

    def filtered_out(self, config: DirectionConfig, picked: Picked | None) -> Float[Tensor, "r d_model"]:
        """What the filters project out of directions, found in the span: a decomposition of d_model costs far more."""
        if not (config.orthogonalize or config.benign_rank):
            return self.whole.target.new_zeros(0, self.whole.width)
        sample = self._reduced if picked is None else self._reduced.resampled(*picked)
        return self._span.back(filter_basis(sample.neutral, config))


def _residuals(target: Tensor, neutral: Tensor, shown: Tensor | None, quantile: float | None) -> _Residuals:
    b, g = (winsorized(rows.double(), quantile) for rows in (target, neutral))
    return _Residuals(Sample(b, g, b.shape[1], shown))


def _estimate_at(residuals: _Residuals, config: DirectionConfig, picked: Picked | None = None) -> _AtPoint:
    """Of all prompts, or of those that a resample picked."""
    used, reason = ESTIMATORS[config.estimator], None
    sample = residuals.of(used, picked)
    if float(sample.gap.norm()) <= ROUNDING * sample.size:
        return _AtPoint(torch.zeros(1, residuals.whole.width), torch.zeros(1), {}, None)
    found = used.estimate(sample, config)
    if isinstance(found, Unsuited):
        used, reason, facts = ESTIMATORS[config.fallback], found.reason, found.facts
        sample = residuals.of(used, picked)
        other = used.estimate(sample, config)
        assert isinstance(other, Estimate)  # whatever may be fallen back on always is one
        found = replace(other, facts={**facts, **other.facts})
    vectors = residuals.back(normalize(found.vectors), used, picked)
    filtered = _filtered(vectors, residuals.filtered_out(config, picked))
    gap = residuals.back(sample.gap[None], used, picked)[0]
    unit = orthonormalize(normalize(towards(filtered, gap)))
    weights = torch.where(unit.any(-1), found.weights, torch.zeros_like(found.weights))
    return _AtPoint(unit.float(), weights.float(), found.facts, reason)


def _filtered(vectors: Float[Tensor, "k d"], basis: Float[Tensor, "r d"]) -> Float[Tensor, "k d"]:
    """Without what the basis spans; zero where that is all there was."""
    rests = [(vector, project_out(vector, basis)) for vector in vectors]
    kept = [rest if float(rest.norm()) > ROUNDING * float(v.norm()) else torch.zeros_like(v) for v, rest in rests]
    return torch.stack(kept)


def _gathered(at_points: Sequence[_AtPoint]) -> Estimated:
    """Padded to the most directions that a point has."""
    k, width = max(len(at.vectors) for at in at_points), at_points[0].vectors.shape[1]
    vectors, weights = torch.zeros(k, len(at_points), width), torch.zeros(k, len(at_points))
    for point, at in enumerate(at_points):
        vectors[: len(at.vectors), point], weights[: len(at.weights), point] = at.vectors, at.weights
    facts, fallbacks = tuple(at.facts for at in at_points), tuple(at.fallback for at in at_points)
    return Estimated(vectors, weights, facts, fallbacks)


def _grouped(reasons: Sequence[str | None]) -> list[tuple[str, list[int]]]:
    """Every reason with its points."""
    named = dict.fromkeys(reason for reason in reasons if reason is not None)
    return [(reason, [point for point, one in enumerate(reasons) if one == reason]) for reason in named]


def _points(points: Sequence[int]) -> str:
    """Such as `point 3` or `points 1-4, 7`."""
    runs: list[list[int]] = []
    for point in points:
        if runs and runs[-1][-1] == point - 1:
            runs[-1].append(point)
        else:
            runs.append([point])
    shown = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"point{'s' if len(points) > 1 else ''} {shown}"
