"""How far the residual stream lies along a direction at a prompt's last token: vᵀ r, before the final norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.architecture.layers import decoder_layers
from iconoclast_tl.architecture.reading import widened
from iconoclast_tl.execution.head import is_separate
from iconoclast_tl.execution.teacher_forcing import force, forced_logits
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import Tokens
from iconoclast_tl.scores.score import ScoreBatch


class Projection:
    """The projection at the last residual point."""

    name = "projection"

    def __init__(self, model: Model, prompts: Sequence[Tokens], direction: Float[Tensor, "d_model"]) -> None:
        """direction: a unit vector."""
        self.model, self.direction = model, direction
        is_separate(model)  # found out now, while no hooks are on
        self._forced = force(prompts, [(model.pad_id,)] * len(prompts), 1, model.pad_id)

    def ask(self, prompts: Int[Tensor, "n"]) -> ScoreBatch:
        """One row for every prompt."""
        return ScoreBatch(self._forced.take(prompts), torch.arange(len(prompts)), len(prompts))

    def read(self, asked: ScoreBatch, candidates: int = 1) -> Float[Tensor, "candidate n"]:
        """The projection of every prompt under every candidate."""
        kept: list[Tensor] = []

        def keep(module: Any, args: Any, output: Any) -> None:
            kept.append((output[0] if isinstance(output, tuple) else output)[:, -1])

        handle = decoder_layers(self.model.hf)[-1].register_forward_hook(keep)
        try:
            forced_logits(self.model, asked.forced)
        finally:
            handle.remove()
        states = widened(kept[0])
        return (states @ self.direction.to(states)).reshape(candidates, asked.n)
