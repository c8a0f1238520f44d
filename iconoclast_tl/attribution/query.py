"""A score of some prompts, and the parts whose strengths it depends on: the input of every method but `direct`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.architecture.hook_points import HookedModule
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.attribution.result import PositionSums
from iconoclast_tl.attribution.subject import Subject
from iconoclast_tl.execution.batching import Room
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.scores.score import Score


@dataclass(frozen=True)
class Query:
    """The same for every method."""

    score: Score
    subject: Subject
    prompts: Int[Tensor, "n"]
    """Indices into the score's prompts."""
    _: KW_ONLY
    batch_size: int
    """Rows in one forward pass. A method that puts parts into rows has parts × prompts of them."""
    positions: bool = False
    """Whether values by position are wanted, too."""
    track: Track = silent

    @property
    def sites(self) -> Mapping[Site, HookedModule]:
        """Where to hook the score's model."""
        return self.score.model.sites

    def new_sums(self) -> PositionSums | None:
        """An accumulator of values by position; None where they are not wanted."""
        return PositionSums(len(self.subject.parts)) if self.positions else None

    @torch.no_grad()
    def scores(self) -> Float[Tensor, "n"]:
        """The score of every prompt, under the hooks that are on."""
        read = Room(self.batch_size).over(
            self.prompts, lambda some: self.score.read(self.score.ask(some))[0].float().cpu()
        )
        return torch.cat(read)
