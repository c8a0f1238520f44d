"""An attribution study: every method asked for, on the same prompts, under the same edit, and how they compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.attribution.agreement import Agreement, Overlooked, overlooked, pairs
from iconoclast_tl.attribution.causal import Causal, causal
from iconoclast_tl.attribution.config import AttributionConfig, MethodName
from iconoclast_tl.attribution.cumulative import Curve, cumulative
from iconoclast_tl.attribution.direct import Unembedding, direct
from iconoclast_tl.attribution.gradient import gradient, integrated
from iconoclast_tl.attribution.parts import Part
from iconoclast_tl.attribution.query import Query
from iconoclast_tl.attribution.result import Attribution
from iconoclast_tl.attribution.subject import Subject
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.models.hook_points import HookedModule
from iconoclast_tl.models.post_norm import Gains
from iconoclast_tl.models.sites import Site
from iconoclast_tl.prompts.chat import Tokens
from iconoclast_tl.scores.score import Score

RANKING = ("integrated", "ablate", "restore", "gradient", "interchange")
"""By which heads are chosen where no method is named: the first of these that was asked for. One head taken away alone
may change nothing where others do the same; what the integral gives adds up."""


@dataclass(frozen=True)
class Ask:
    """What is attributed, on what."""

    target: Score
    neutral: Score
    """The same score of the matched neutral prompts, number for number."""
    subject: Subject
    sites: Mapping[Site, HookedModule]
    gains: Gains
    along: Float[Tensor, "d_model"] | Unembedding
    """Of direct attribution."""
    rows: Sequence[Tokens]
    """Target prompts."""
    matched: Sequence[Tokens]
    """Their neutral ones."""
    batch_size: int
    gradient_batch: int
    written: Mapping[Site, HookedModule]
    """Where all that writes is, also what is not edited: of direct attribution."""
    only: frozenset[Part] | None = None
    """The parts that are looked at; None: all."""
    track: Track = silent
    leave_out: Callable[[str], None] | None = None
    """Whom to tell that direct attribution is left out, where it is not possible; None: that is an error."""

    def query(self, score: Score) -> Query:
        """All prompts, and the parts that are looked at."""
        subject = self.subject if self.only is None else self.subject.limited(self.only)
        return Query(score, subject, self.sites, torch.arange(len(self.rows)), self.batch_size, track=self.track)


@dataclass(frozen=True, eq=False)
class Study:
    """What was found."""

    score: str
    edit: str
    """In words."""
    direction: str
    """Of direct attribution and of the projection, in words."""
    subject: Subject
    n_layers: int
    found: tuple[Attribution, ...]
    target_scores: Float[Tensor, "n"]
    neutral_scores: Float[Tensor, "n"]
    top: int
    """Parts over which methods are compared, at most."""
    curves: tuple[Curve, ...] = ()
    accumulated: Mapping[str, Float[Tensor, "point"]] = field(default_factory=dict)
    """side → mean projection on v at every residual point."""

    @property
    def gap(self) -> float:
        """Mean score of target prompts less that of their neutral ones."""
        return float((self.target_scores.double() - self.neutral_scores.double()).mean())

    @property
    def compared(self) -> list[Attribution]:
        """The methods that are compared: of direct attribution the contrast, of exchanges those into target prompts."""
        return [one for one in self.found if one.method not in ("direct", "interchange-back")]

    @cached_property
    def agreements(self) -> list[Agreement]:
        """Of every two methods."""
        return pairs(self.compared, self.top)

    @cached_property
    def overlooked(self) -> list[Overlooked] | None:
        """Parts that direct attribution overlooks; None where it, or a causal method, was not asked for."""
        contrast = next((one for one in self.found if one.method == "direct-contrast"), None)
        effects = [one for one in self.found if one.method in get_args(Causal)]
        return None if contrast is None or not effects else overlooked(contrast, effects, self.gap)

    def by(self, method: str) -> Attribution:
        """What one method found."""
        return next(one for one in self.found if one.method == method)

    def ranking(self, method: str | None) -> Attribution:
        """By which heads are ranked: by `direct`, what they write more on target prompts counts."""
        return self.best if method is None else self.by("direct-contrast" if method == "direct" else method)

    @property
    def best(self) -> Attribution:
        """By which heads are chosen where no method is named."""
        named = {one.method: one for one in self.found}
        return next((named[name] for name in RANKING if name in named), self.found[-1])

    def to_json(self) -> dict[str, Any]:
        """As it stands in attribution.json."""
        hidden = self.overlooked
        return {
            "score": self.score,
            "edit": self.edit,
            "direction": self.direction,
            "n": len(self.target_scores),
            "target": float(self.target_scores.mean()),
            "neutral": float(self.neutral_scores.mean()),
            "methods": {one.method: one.to_json() for one in self.found},
            "agreement": [one.to_json() for one in self.agreements],
            "overlooked": None if hidden is None else [one.to_json() for one in hidden],
            "cumulative": {curve.method: curve.to_json() for curve in self.curves},
            "accumulated": {side: values.tolist() for side, values in self.accumulated.items()},
        }


def study(
    ask: Ask,
    config: AttributionConfig,
    methods: Sequence[MethodName],
    edit: str,
    direction: str,
    accumulated: Mapping[str, Float[Tensor, "point"]],
) -> Study:
    """Ask every method. edit, direction: in words.

    Raises `UserError` where the score does not tell target from neutral prompts.
    """
    query = ask.query(ask.target)
    target, neutral = query.scores(), ask.query(ask.neutral).scores()
    require_different(target, neutral, ask.target.name)
    every = [one for method in methods for one in _by(method, ask, config.positions == "all")]
    found = every if ask.only is None else [one.limited(ask.only) for one in every]
    whole = Study(
        ask.target.name,
        edit,
        direction,
        ask.subject,
        ask.target.model.n_layers,
        tuple(found),
        target,
        neutral,
        config.top,
        accumulated=accumulated,
    )
    return replace(whole, curves=tuple(cumulative(whole.compared, query))) if config.cumulative else whole


def require_different(target: Float[Tensor, "n"], neutral: Float[Tensor, "n"], name: str) -> None:
    """Raise `UserError` where two standard errors of the mean difference reach 0: there is nothing to attribute."""
    difference = target.double() - neutral.double()
    error = float(difference.std()) / len(difference) ** 0.5
    if not abs(float(difference.mean())) > 2 * error:
        raise UserError(
            f"the score {name} does not differ between target and neutral prompts",
            got=f"{float(target.mean()):.3g} and {float(neutral.mean()):.3g}, standard error {error:.2g}",
            want="a difference of more than two standard errors",
            mend="choose another attribution.score, more attribution.prompts, or other prompts",
        )


def _by(method: MethodName, ask: Ask, positions: bool) -> list[Attribution]:
    query = replace(ask.query(ask.target), positions=positions)
    if method == "direct":
        return _direct(ask, positions)
    if method in ("gradient", "integrated"):
        # All parts cost no more than some, and the integral adds up over all.
        whole = replace(query, subject=ask.subject, batch_size=ask.gradient_batch)
        return [gradient(whole) if method == "gradient" else integrated(whole)]
    if method == "interchange":
        back = replace(query, score=ask.neutral)
        return [causal("interchange", query, ask.neutral), causal("interchange-back", back, ask.target)]
    return [causal("ablate" if method == "ablate" else "restore", query)]


def _direct(ask: Ask, positions: bool) -> list[Attribution]:
    """On target prompts, and what they have more of than their neutral ones: what all prompts share carries nothing."""
    model = ask.target.model
    given = (ask.along, ask.batch_size, positions, ask.track)
    try:
        target = direct(model, ask.written, ask.gains, ask.rows, *given, "direct, target")
        neutral = direct(model, ask.written, ask.gains, ask.matched, *given, "direct, neutral")
    except UserError as error:
        if ask.leave_out is None:
            raise
        ask.leave_out(f"direct is left out: {error}")
        return []
    values = target.values - neutral.values
    by_position = None
    if target.by_position is not None and neutral.by_position is not None:
        by_position = target.by_position.less(neutral.by_position)
    return [target, Attribution("direct-contrast", f"{target.of}, target − neutral", target.parts, values, by_position)]
