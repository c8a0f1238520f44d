"""A score: prompts laid out for a forward pass, and a differentiable number for each of them under any hooks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.execution.teacher_forcing import Forced
from iconoclast_tl.models.model import Model
from iconoclast_tl.scores.odds import Tree


@dataclass(frozen=True)
class ScoreBatch:
    """Rows of a batch from which a score is read; a prompt may have several rows, one for every prefix that is fed."""

    forced: Forced
    owner: Int[Tensor, "row"]
    """For every row, the index of its prompt among the n prompts."""
    n: int
    tree: Tree | None = None
    """How log-odds are computed from the rows; None for other scores."""

    def times(self, candidates: int) -> ScoreBatch:
        """The rows repeated once for every candidate, candidate by candidate."""
        return replace(self, forced=self.forced.take(torch.arange(len(self.owner)), candidates))

    @property
    def ends(self) -> int:
        """The column of every prompt's last token; responses follow it."""
        return int(self.forced.batch.input_ids.shape[1] - self.forced.tokens.shape[1])


@runtime_checkable
class Score(Protocol):
    """A score of prompts, read off a forward pass."""

    name: str
    model: Model

    def ask(self, prompts: Int[Tensor, "n"]) -> ScoreBatch:
        """Lay out these prompts, given by index."""

    def read(self, asked: ScoreBatch, candidates: int = 1) -> Float[Tensor, "candidate n"]:
        """The score of every prompt under every candidate, from rows that `ask` laid out and `times` repeated."""
