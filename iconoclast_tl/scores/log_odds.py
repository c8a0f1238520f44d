"""Log-odds of the token prefixes that open a behaviour, by teacher forcing; nothing is generated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.execution.candidates import BatchCandidates
from iconoclast_tl.execution.head import head_logits, is_separate
from iconoclast_tl.execution.shared_prefix import Prefix
from iconoclast_tl.execution.teacher_forcing import Forced, entered, force, forced_states
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
        prefix: Prefix | None = None,
    ) -> None:
        """temperature: divides the logits. layer: the first layer to run; no hooks may be on below it.

        prefix: what all prompts begin with, which is run once for all rows.
        """
        self.model, self._layout, self._temperature = model, layout, temperature
        is_separate(model)  # found out now, while no hooks are on
        fed = [(*path, model.pad_id) for _, path in layout.rows]  # the last token is predicted, not fed
        rows = [prompts[prompt] for prompt, _ in layout.rows]
        forced = force(rows, fed, max(len(path) for path in fed), model.pad_id, prefix)
        self._forced: Forced = entered(model, forced, layer, batch_size)

    def ask(self, prompts: Int[Tensor, "n"]) -> ScoreBatch:
        """The rows of the trees of these prompts."""
        rows, tree = self._layout.tree(prompts.tolist())
        place = {prompt: index for index, prompt in enumerate(prompts.tolist())}
        owner = torch.tensor([place[self._layout.rows[row][0]] for row in rows])
        return ScoreBatch(self._forced.take(torch.tensor(rows)), owner, len(prompts), tree)

    def read(
        self, asked: ScoreBatch, candidates: int = 1, assigned: BatchCandidates | None = None
    ) -> Float[Tensor, "candidate n"]:
        """The log-odds of every prompt under every candidate.

        assigned: which row belongs to which candidate, where rows share a prefix.
        """
        tree = asked.tree
        assert tree is not None
        states = forced_states(self.model, asked.forced, assigned, candidates)
        states = states.reshape(candidates, -1, *states.shape[1:])
        at_nodes = states[:, tree.row.to(states.device), tree.depth.to(states.device)]
        return tree_log_odds(head_logits(self.model, at_nodes) / self._temperature, tree, asked.n)
