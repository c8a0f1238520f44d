"""Residuals and statistics of a few token rows at their last token, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.activations.collect import collect_residuals
from iconoclast_tl.activations.statistics import ActivationStats
from iconoclast_tl.architecture.sites import Component
from iconoclast_tl.models.model import Model
from iconoclast_tl.models.twin import Twin
from iconoclast_tl.prompts.tokens import Tokens


@dataclass(frozen=True)
class LastPosition:
    """What a model holds at the last token of n prompts."""

    residuals: Float[Tensor, "n point d_model"]
    writes: dict[Component, ActivationStats]
    reads: dict[Component, ActivationStats]


def collect_last_position(model: Model, twin: Twin | None, rows: Sequence[Tokens], batch_size: int) -> LastPosition:
    """As `collect` reads them, of token rows in place of prompts."""
    residuals = torch.empty(len(rows), model.n_layers + 1, model.d_model)

    def keep(where: Sequence[int], found: Tensor) -> None:
        residuals[list(where)] = found[:, 0]

    found = collect_residuals(model, twin, rows, keep, 1, batch_size)
    return LastPosition(residuals, found.writes, found.reads)
