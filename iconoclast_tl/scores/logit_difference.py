"""How much higher the logits of a behaviour's first tokens are than those of the others' first tokens.

score = mean over the tokens that rise from neutral to target prompts − mean over those that fall, at the first token of
the response. Linear in what enters the unembedding, so that it can be attributed directly (Wang et al., 2211.00593).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.evaluation.teacher_forcing import force, forced_logits
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.loading import LoadedModel
from iconoclast_tl.prompts.chat import Tokens
from iconoclast_tl.scores.score import Asked


class LogitDifference:
    """Of the first token."""

    name = "logit"

    def __init__(
        self, model: LoadedModel, prompts: Sequence[Tokens], rising: Int[Tensor, "t"], falling: Int[Tensor, "u"]
    ) -> None:
        """`UserError` where no token rises, or none falls."""
        if not len(rising) or not len(falling):
            raise UserError(
                "no first token tells target from neutral prompts",
                got=f"{len(rising)} that rise and {len(falling)} that fall",
                mend="use another score, such as log-odds",
            )
        self.model, self.rising, self.falling = model, rising, falling
        self._forced = force(prompts, [(model.pad_id,)] * len(prompts), 1, model.pad_id)

    def ask(self, prompts: Int[Tensor, "n"]) -> Asked:
        """A row a prompt."""
        return Asked(self._forced.take(prompts), torch.arange(len(prompts)), len(prompts))

    def read(self, asked: Asked, candidates: int = 1) -> Float[Tensor, "candidate n"]:
        """The difference of every prompt under every candidate."""
        logits = forced_logits(self.model, asked.forced)[:, 0]
        rising, falling = (logits[:, tokens.to(logits.device)].mean(-1) for tokens in (self.rising, self.falling))
        return (rising - falling).reshape(candidates, asked.n)
