"""An attribution study: several methods on the same prompts under the same edit, and how they compare."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.attribution.agreement import MethodAgreement, Overlooked, overlooked, pairs
from iconoclast_tl.attribution.causal import Causal, causal
from iconoclast_tl.attribution.config import AttributionConfig, MethodName
from iconoclast_tl.attribution.cumulative import HEADS, Curve, cumulative
from iconoclast_tl.attribution.direct import Unembedding, direct
from iconoclast_tl.attribution.gradient import TOLERANCE, gradient, integrated
from iconoclast_tl.attribution.parts import Part, PartKind
from iconoclast_tl.attribution.query import Query
from iconoclast_tl.attribution.result import Attribution, PartValue
from iconoclast_tl.attribution.subject import Subject
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Say, Track, silent
from iconoclast_tl.prompts.tokens import Tokens
from iconoclast_tl.scores.score import Score

RANKING = ("integrated", "ablate", "restore", "gradient", "interchange")
"""The first of these that was used ranks parts where no method is named. Ablating one head alone may change nothing
where other heads do the same; the values of `integrated` sum to the effect of the edit."""


@dataclass(frozen=True, kw_only=True)
class StudyInputs:
    """The scores, the edit taken apart, and the prompts that every method of a study works on."""

    target: Score
    """The score of the target prompts."""
    neutral: Score
    """The same score of the matched neutral prompts, in the same order."""
    subject: Subject
    target_rows: Sequence[Tokens]
    neutral_rows: Sequence[Tokens]
    """The matched neutral prompt of every target prompt."""
    along: Float[Tensor, "d_model"] | Unembedding | None
    """What direct attribution reads along; None: no direction is known."""
    batch_size: int
    """Rows in one forward pass."""
    gradient_batch_size: int
    """Prompts in one backward pass."""
    only: frozenset[Part] | None = None
    """The parts to attribute to; None: all."""
    track: Track = silent
    leave_out: Say | None = None
    """Called with the reason where direct attribution is left out; None: the reason is raised."""

    def query(self, score: Score, positions: bool = False) -> Query:
        """A query of one score on all prompts and the parts to attribute to."""
        subject = self.subject if self.only is None else self.subject.limited(self.only)
        prompts = torch.arange(len(self.target_rows))
        return Query(score, subject, prompts, batch_size=self.batch_size, positions=positions, track=self.track)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Study:
    """What every method found, and how the methods compare.

    study.top(10)                  # the ten parts that contribute most, with intervals
    study.by("ablate").means       # of one method, a value for every part of study.by("ablate").parts
    study.edit_of_heads(4)         # the edit of the first four heads alone
    """

    score: str
    edit: str
    """In words."""
    direction: str
    """The direction of direct attribution and of the projection, in words."""
    subject: Subject
    n_layers: int
    found: tuple[Attribution, ...]
    target_scores: Float[Tensor, "n"]
    neutral_scores: Float[Tensor, "n"]
    top_k: int
    """How many parts are listed, and at most how many are compared between methods."""
    curves: tuple[Curve, ...] = ()
    accumulated: Mapping[str, Float[Tensor, "point"]] = field(default_factory=dict)
    """side → mean projection on v at every residual point."""

    def __repr__(self) -> str:
        """Such as `Study(log-odds by integrated, 32 prompts: L4H1 +3.10, L3 MLP +2.20, L5H0 +1.90)`."""
        methods = ", ".join(one.method for one in self.found)
        first = ", ".join(f"{one.part} {one.value:+.2f}" for one in self.top(3))
        return f"Study({self.score} by {methods}, {len(self.target_scores)} prompts: {first})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the parts that contribute most, by every method."""
        head = "".join(f"<th>{html.escape(one.method)}</th>" for one in self.found)
        listed = [one.part for one in self.top(self.top_k)]
        valued = [{one.part: one for one in method.ranked(len(method.parts))} for method in self.found]
        cells = (
            "".join(f"<td>{values[part].in_words() if part in values else ''}</td>" for values in valued)
            for part in listed
        )
        rows = "".join(f"<tr><td>{part}</td>{cell}</tr>" for part, cell in zip(listed, cells, strict=True))
        return f"<p>{html.escape(repr(self))}</p><table><tr><th>part</th>{head}</tr>{rows}</table>"

    def top(self, k: int, *components: PartKind, method: str | None = None) -> list[PartValue]:
        """The k parts that contribute most, largest first, each with its mean and 95% interval over prompts.

        components: the kinds of parts to rank; by default heads (or attentions whose heads cannot be told apart) and
        MLPs. method: the method that ranks; by default the first of `RANKING` that was used. Raises `UserError` for a
        method that was not used.
        """
        return self.ranking(method).ranked(k, *(components or ("head", "attn", "mlp")))

    def edit_of_heads(self, k: int, method: str | None = None) -> Edit:
        """The edit that projects the study's directions out of the first k heads by a method alone, λ = 1."""
        return self.subject.only(self.ranking(method).top(k, *HEADS))

    @property
    def gap(self) -> float:
        """Mean score of the target prompts minus that of their matched neutral prompts."""
        return float((self.target_scores.double() - self.neutral_scores.double()).mean())

    @property
    def compared(self) -> list[Attribution]:
        """The attributions that are compared: `direct-contrast` for direct, `interchange` for both interchanges."""
        return [one for one in self.found if one.method not in ("direct", "interchange-back")]

    @cached_property
    def agreements(self) -> list[MethodAgreement]:
        """The agreement of every two methods."""
        return pairs(self.compared, self.top_k)

    @cached_property
    def overlooked(self) -> list[Overlooked] | None:
        """Parts that direct attribution overlooks; None unless it and a causal method were used."""
        contrast = next((one for one in self.found if one.method == "direct-contrast"), None)
        effects = [one for one in self.found if one.method in get_args(Causal)]
        return None if contrast is None or not effects else overlooked(contrast, effects, self.gap)

    @property
    def warnings(self) -> list[str]:
        """What a reader must know of a method's values: where the integrated ones do not sum to the edit's effect."""
        lines = []
        for one in self.found:
            gap, total = one.checks.get("gap", 0.0), abs(one.checks.get("total", 0.0))
            if gap > TOLERANCE * total:
                lines.append(
                    f"{one.method}: the sum of the values misses the edit's effect on the score by {gap:.2g} of "
                    f"{total:.2g}. On the way there the score jumps (a token goes to another expert), the edit does "
                    "next to nothing, or half precision rounds its gradient"
                )
        return lines

    def by(self, method: str) -> Attribution:
        """What one method found; `UserError` for a method that was not used."""
        for one in self.found:
            if one.method == method:
                return one
        raise UserError(f"this study has no method {method}", want=", ".join(one.method for one in self.found))

    def ranking(self, method: str | None = None) -> Attribution:
        """The attribution by which heads are ranked; `direct` ranks by target minus neutral prompts."""
        return self.best if method is None else self.by("direct-contrast" if method == "direct" else method)

    @property
    def best(self) -> Attribution:
        """The attribution that ranks parts where no method is named: the first of `RANKING` that was used."""
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
    inputs: StudyInputs,
    config: AttributionConfig,
    *,
    edit: str,
    direction: str,
    accumulated: Mapping[str, Float[Tensor, "point"]],
) -> Study:
    """Attribute by every method of `config.methods`. edit, direction: what they are called.

    Raises `UserError` where the score does not tell target from neutral prompts.
    """
    query = inputs.query(inputs.target)
    target, neutral = query.scores(), inputs.query(inputs.neutral).scores()
    require_different(target, neutral, inputs.target.name)
    every = [one for method in config.methods for one in _by(method, inputs, config.positions == "all")]
    found = every if inputs.only is None else [one.limited(inputs.only) for one in every]
    whole = Study(
        score=inputs.target.name,
        edit=edit,
        direction=direction,
        subject=inputs.subject,
        n_layers=inputs.target.model.n_layers,
        found=tuple(found),
        target_scores=target,
        neutral_scores=neutral,
        top_k=config.top,
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


def _by(method: MethodName, inputs: StudyInputs, positions: bool) -> list[Attribution]:
    query = inputs.query(inputs.target, positions)
    if method == "direct":
        return _direct(inputs, positions)
    if method in ("gradient", "integrated"):
        # All parts cost no more than some, and the integral adds up over all.
        whole = replace(query, subject=inputs.subject, batch_size=inputs.gradient_batch_size)
        return [gradient(whole) if method == "gradient" else integrated(whole)]
    if method == "interchange":
        back = inputs.query(inputs.neutral, positions)
        return [causal("interchange", query, inputs.neutral), causal("interchange-back", back, inputs.target)]
    return [causal("ablate" if method == "ablate" else "restore", query)]


def _direct(inputs: StudyInputs, positions: bool) -> list[Attribution]:
    """On target prompts, and target minus matched neutral prompts: what all prompts share carries no behaviour."""

    def of(rows: Sequence[Tokens], side: str) -> Attribution:
        assert inputs.along is not None  # the caller has checked
        return direct(
            inputs.target.model,
            rows,
            inputs.along,
            batch_size=inputs.batch_size,
            positions=positions,
            track=inputs.track,
            description=f"direct, {side}",
        )

    try:
        target, neutral = of(inputs.target_rows, "target"), of(inputs.neutral_rows, "neutral")
    except UserError as error:
        if inputs.leave_out is None:
            raise
        inputs.leave_out(f"direct is left out: {error}")
        return []
    values = target.values - neutral.values
    by_position = None
    if target.by_position is not None and neutral.by_position is not None:
        by_position = target.by_position.minus(neutral.by_position)
    return [target, Attribution("direct-contrast", f"{target.of}, target − neutral", target.parts, values, by_position)]
