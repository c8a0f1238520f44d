"""Settings of an attribution."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from iconoclast_tl.foundation.stage_config import Changeable, StageConfig
from iconoclast_tl.models.batch_size import BatchSize

MethodName = Literal["direct", "gradient", "integrated", "ablate", "restore", "interchange"]
ScoreName = Literal["log-odds", "logit", "projection"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
NEED_AN_EDIT: tuple[MethodName, ...] = ("integrated", "restore")


class AttributionConfig(StageConfig):
    """What is attributed, by which methods, over how many prompts."""

    methods: Annotated[tuple[MethodName, ...], Changeable] = Field(METHODS, min_length=1)
    """By which methods; those that need an edit are left out where there is none and they are not named."""
    score: Annotated[ScoreName, Changeable] = "log-odds"
    """`log-odds` of the ways into the behaviour, as a search has them; `logit`: of its first tokens over the others';
    `projection` on the direction at the last residual point. Direct attribution is of the projection where the score
    is the log-odds."""
    prompts: Annotated[int, Changeable] = Field(32, ge=2)
    """Train prompts of each side."""
    batch_size: Annotated[BatchSize, Changeable] = "auto"
    """Rows in one forward pass, `auto`: as memory has room for (measured). Halved by itself where it runs out."""
    positions: Annotated[Literal["last", "all"], Changeable] = "last"
    """`all`: also by position; what ablates, restores or exchanges then costs as many times more as there are some."""
    top: Annotated[int, Changeable] = Field(20, ge=1)
    """Parts that are listed, and over which methods are compared."""
    cumulative: Annotated[bool, Changeable] = True
    """Also ablate the first 1, 2, 4, … heads of every method together."""
