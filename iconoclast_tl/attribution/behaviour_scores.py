"""The score that is attributed: of target prompts, of their matched neutral prompts, and its direct counterpart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.attribution.direct import Unembedding, unembedding
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.prompts.tokens import Tokens
from iconoclast_tl.scores.config import ScoreConfig
from iconoclast_tl.scores.registry import SCORES, ScoreInputs
from iconoclast_tl.scores.score import Score


@dataclass(frozen=True)
class MatchedScores:
    """One score of the target prompts and of their matched neutral prompts, in the same order."""

    target: Score
    neutral: Score
    along: Float[Tensor, "d_model"] | Unembedding | None
    """What direct attribution reads along: the direction, or for `logit` the difference of unembedding rows."""


def matched_scores(
    name: str,
    base: Baseline,
    neutral_rows: Sequence[Tokens],
    direction: Float[Tensor, "d_model"] | None,
    scores: ScoreConfig,
    split: str = "train",
) -> MatchedScores:
    """The score by its name; `neutral_rows` are the matched neutral prompts of the baseline's target prompts.

    Raises `UserError` where the score cannot be made: `log-odds` where no target prompt shows the behaviour, `logit`
    where no first token tells the sides apart, `projection` without a direction.
    """
    inputs = ScoreInputs(base=base, direction=direction, config=scores, split=split)
    make = SCORES.require(name)
    target, neutral = (make(inputs, rows) for rows in (base.suite["target"].rows, neutral_rows))
    along = unembedding(base.model, *inputs.first_tokens) if name == "logit" else direction
    return MatchedScores(target, neutral, along)
