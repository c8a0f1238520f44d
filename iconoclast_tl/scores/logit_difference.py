"""The mean logit of a behaviour's first tokens minus that of the first tokens of other responses.

score = mean over the tokens that rise from neutral to target prompts − mean over those that fall, at the first token of
the response. Linear in what enters the unembedding, so that it can be attributed directly (Wang et al., 2211.00593).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.execution.head import is_separate
from iconoclast_tl.execution.teacher_forcing import force, forced_logits
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import Tokens
from iconoclast_tl.scores.score import ScoreBatch


class LogitDifference:
    """The difference at the first token of the response."""

    name = "logit"

    def __init__(
        self, model: Model, prompts: Sequence[Tokens], rising: Int[Tensor, "t"], falling: Int[Tensor, "u"]
    ) -> None:
        """rising, falling: tokens likelier, and less likely, on target prompts. `UserError` where either is empty."""
        if not len(rising) or not len(falling):
            raise UserError(
                "no first token tells target from neutral prompts",
                got=f"{len(rising)} that rise and {len(falling)} that fall",
                mend="use another score, such as log-odds",
            )
        self.model, self.rising, self.falling = model, rising, falling
        is_separate(model)  # found out now, while no hooks are on
        self._forced = force(prompts, [(model.pad_id,)] * len(prompts), 1, model.pad_id)

    def ask(self, prompts: Int[Tensor, "n"]) -> ScoreBatch:
        """One row for every prompt."""
        return ScoreBatch(self._forced.take(prompts), torch.arange(len(prompts)), len(prompts))

    def read(self, asked: ScoreBatch, candidates: int = 1) -> Float[Tensor, "candidate n"]:
        """The difference of every prompt under every candidate."""
        logits = forced_logits(self.model, asked.forced)[:, 0]
        rising, falling = (logits[:, tokens.to(logits.device)].mean(-1) for tokens in (self.rising, self.falling))
        return (rising - falling).reshape(candidates, asked.n)
