"""Settings of an attribution."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from iconoclast_tl.execution.batch_size import BatchSize
from iconoclast_tl.foundation.stage_config import Changeable, StageConfig, require_part

MethodName = Literal["direct", "gradient", "integrated", "ablate", "restore", "interchange"]


def _known_score(name: str) -> str:
    from iconoclast_tl.scores.registry import SCORES  # not before it is needed: it brings the model along

    return require_part(SCORES, name)


ScoreName = Annotated[str, AfterValidator(_known_score)]
"""A name in `scores.registry.SCORES`."""
METHODS: tuple[MethodName, ...] = get_args(MethodName)
NEED_AN_EDIT: tuple[MethodName, ...] = ("integrated", "restore")


class AttributionConfig(StageConfig):
    """Which score is attributed, by which methods, over how many prompts."""

    methods: Annotated[tuple[MethodName, ...], Changeable] = Field(METHODS, min_length=1)
    """The methods. Those that need an edit are left out where there is none, unless they are named."""
    score: Annotated[ScoreName, Changeable] = "log-odds"
    """`log-odds` of the token prefixes that open the behaviour, as in a search; `logit`: mean logit of its first tokens
    minus that of the others'; `projection` on the direction at the last residual point. Direct attribution explains the
    projection where the score is the log-odds."""
    prompts: Annotated[int, Changeable] = Field(32, ge=2)
    """Train prompts of each side."""
    batch_size: Annotated[BatchSize, Changeable] = "auto"
    """Rows in one forward pass, `auto`: as memory has room for (measured). Halved by itself where it runs out."""
    gradient_batch_size: Annotated[int, Changeable] = Field(8, ge=1)
    """Prompts in one backward pass, of `gradient` and `integrated`."""
    positions: Annotated[Literal["last", "all"], Changeable] = "last"
    """`all`: also give values by position, which multiplies the cost of causal methods by the number of positions."""
    top: Annotated[int, Changeable] = Field(20, ge=1)
    """How many parts are listed, and at most how many are compared between methods."""
    cumulative: Annotated[bool, Changeable] = True
    """Also ablate the first 1, 2, 4, … heads of every method together."""
