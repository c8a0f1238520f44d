"""What every method but the direct one is asked: a score of prompts, and the parts on whose strengths it depends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.attribution.result import PositionSums
from iconoclast_tl.attribution.subject import Subject
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.models.batching import Room
from iconoclast_tl.models.hook_points import HookedModule
from iconoclast_tl.models.sites import Site
from iconoclast_tl.scores.score import Score


@dataclass(frozen=True)
class Query:
    """The same for every method."""

    score: Score
    subject: Subject
    sites: Mapping[Site, HookedModule]
    prompts: Int[Tensor, "n"]
    """Numbers of the score's prompts."""
    batch_size: int
    """Prompts in one pass, or, where parts are rows of a batch, rows."""
    positions: bool = False
    """Also by position."""
    track: Track = silent

    def new_sums(self) -> PositionSums | None:
        """Where values by position are gathered, if they are asked for."""
        return PositionSums(len(self.subject.parts)) if self.positions else None

    @torch.no_grad()
    def scores(self) -> Float[Tensor, "n"]:
        """Of every prompt, under whatever hooks are on."""
        read = Room(self.batch_size).over(
            self.prompts, lambda some: self.score.read(self.score.ask(some))[0].float().cpu()
        )
        return torch.cat(read)
