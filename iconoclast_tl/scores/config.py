"""Settings of scores: how the behaviour is scored where nothing is generated."""

from __future__ import annotations

from pydantic import Field

from iconoclast_tl.foundation.stage_config import StageConfig


class ScoreConfig(StageConfig):
    """How the behaviour is scored in searches, attributions, selections and refinements."""

    temperature: float = Field(0.25, gt=0)
    """Logits are divided by this before odds are taken: 1 is sampling, towards 0 the greedy decoding that is judged."""
    tokens: tuple[str, ...] = ()
    """First tokens of the behaviour, in place of those that are found."""
    prompts: int = Field(48, ge=2)
    """Train prompts of each side from which the first tokens are found, where no search does it."""
