"""Which candidate edit every row of a batch belongs to: one forward pass may ask several edits at once."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor


@dataclass
class BatchCandidates:
    """The candidate of every row of the next forward pass; whoever cuts the batch keeps it up to date.

    Hooks read it while the model runs (`edits.hooks`).
    """

    candidates: Int[Tensor, "batch"] | None = None
    """None while there is one candidate only."""
