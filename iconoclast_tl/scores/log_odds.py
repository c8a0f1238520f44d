"""Log-odds of the token prefixes that open a behaviour, by teacher forcing; nothing is generated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.execution.teacher_forcing import Forced, entered, force, forced_logits
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import Tokens
from iconoclast_tl.scores.odds import tree_log_odds
from iconoclast_tl.scores.prefixes import Layout
from iconoclast_tl.scores.score import ScoreBatch


class LogOdds:
    """The score of prompts laid out as trees of prefixes; `scores.odds` has the formula."""

    name = "log-odds"

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Tokens],
        layout: Layout,
        temperature: float = 1.0,
        layer: int = 0,
        batch_size: int = 8,
    ) -> None:
        """temperature: divides the logits. layer: the first layer to run; no hooks may be on below it."""
        self.model, self._layout, self._temperature = model, layout, temperature
        fed = [(*path, model.pad_id) for _, path in layout.rows]  # the last token is predicted, not fed
        rows = [prompts[prompt] for prompt, _ in layout.rows]
        forced = force(rows, fed, max(len(path) for path in fed), model.pad_id)
        self._forced: Forced = entered(model, forced, layer, batch_size)

    def ask(self, prompts: Int[Tensor, "n"]) -> ScoreBatch:
        """The rows of the trees of these prompts."""
        rows, tree = self._layout.tree(prompts.tolist())
        place = {prompt: index for index, prompt in enumerate(prompts.tolist())}
        owner = torch.tensor([place[self._layout.rows[row][0]] for row in rows])
        return ScoreBatch(self._forced.take(torch.tensor(rows)), owner, len(prompts), tree)

    def read(self, asked: ScoreBatch, candidates: int = 1) -> Float[Tensor, "candidate n"]:
        """The log-odds of every prompt under every candidate."""
        assert asked.tree is not None
        logits = forced_logits(self.model, asked.forced) / self._temperature
        return tree_log_odds(logits.reshape(candidates, -1, *logits.shape[1:]), asked.tree, asked.n)
