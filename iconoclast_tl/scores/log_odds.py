"""Log-odds of the known ways into a behaviour, on prompts, by teacher forcing: no generation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.evaluation.teacher_forcing import Forced, entered, force, forced_logits
from iconoclast_tl.models.loading import LoadedModel
from iconoclast_tl.prompts.chat import Tokens
from iconoclast_tl.scores.odds import tree_log_odds
from iconoclast_tl.scores.paths import Layout
from iconoclast_tl.scores.score import Asked


class LogOdds:
    """Of prompts that are laid out as trees; the formula stands in `scores.odds`."""

    name = "log-odds"

    def __init__(
        self,
        model: LoadedModel,
        prompts: Sequence[Tokens],
        layout: Layout,
        temperature: float = 1.0,
        layer: int = 0,
        batch_size: int = 8,
    ) -> None:
        """temperature: logits are divided by it; layer: only those from it on are run, no hooks may be on then."""
        self.model, self._layout, self._temperature = model, layout, temperature
        fed = [(*path, model.pad_id) for _, path in layout.rows]  # the last token is predicted, not fed
        rows = [prompts[prompt] for prompt, _ in layout.rows]
        forced = force(rows, fed, max(len(path) for path in fed), model.pad_id)
        self._forced: Forced = entered(model, forced, layer, batch_size)

    def ask(self, prompts: Int[Tensor, "n"]) -> Asked:
        """The rows of these prompts' trees."""
        rows, tree = self._layout.tree(prompts.tolist())
        place = {prompt: index for index, prompt in enumerate(prompts.tolist())}
        owner = torch.tensor([place[self._layout.rows[row][0]] for row in rows])
        return Asked(self._forced.take(torch.tensor(rows)), owner, len(prompts), tree)

    def read(self, asked: Asked, candidates: int = 1) -> Float[Tensor, "candidate n"]:
        """The log-odds of every prompt under every candidate."""
        assert asked.tree is not None
        logits = forced_logits(self.model, asked.forced) / self._temperature
        return tree_log_odds(logits.reshape(candidates, -1, *logits.shape[1:]), asked.tree, asked.n)
