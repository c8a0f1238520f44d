"""What every score is: prompts laid out for a forward pass, and a number for each, differentiable, under any hooks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.evaluation.teacher_forcing import Forced
from iconoclast_tl.models.loading import LoadedModel
from iconoclast_tl.scores.odds import Tree


@dataclass(frozen=True)
class Asked:
    """Rows of a batch that are asked for a score; a prompt may have several, one for every way to be looked at."""

    forced: Forced
    owner: Int[Tensor, "row"]
    """Of every row, which of the n prompts it is of."""
    n: int
    tree: Tree | None = None
    """How log-odds are put together from the rows."""

    def times(self, candidates: int) -> Asked:
        """The same rows once for every candidate, candidate by candidate."""
        return replace(self, forced=self.forced.take(torch.arange(len(self.owner)), candidates))

    @property
    def ends(self) -> int:
        """The column of every prompt's last token; responses follow it."""
        return int(self.forced.batch.input_ids.shape[1] - self.forced.tokens.shape[1])


@runtime_checkable
class Score(Protocol):
    """A score of prompts."""

    name: str
    model: LoadedModel

    def ask(self, prompts: Int[Tensor, "n"]) -> Asked:
        """Lay these prompts out."""

    def read(self, asked: Asked, candidates: int = 1) -> Float[Tensor, "candidate n"]:
        """Run the model on what `ask` laid out `times(candidates)`."""
