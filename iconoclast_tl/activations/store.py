"""The activations of a contrast set, and the file that keeps them between stages.

The file is keyed by everything that its numbers depend on, so that a later stage (or an interrupted run) reads it where
the key agrees and collects again where it does not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import read_tensors, write_tensors
from iconoclast_tl.models.sites import WRITERS, Component

CONTENT = 2
"""Counts what the file holds: one of an earlier content is collected again."""


@dataclass(frozen=True)
class Activations:
    """Last-token residuals of the train and val prompts, and the writers' neutral means."""

    target_train: Float[Tensor, "n_target point d_model"]
    neutral_train: Float[Tensor, "n_neutral point d_model"]
    target_val: Float[Tensor, "m_target point d_model"]
    neutral_val: Float[Tensor, "m_neutral point d_model"]
    neutral_writes: Mapping[Component, Float[Tensor, "layer d_model"]]
    """Mean of what each writer writes at the last token of the neutral train prompts, float64."""
    neutral_reads: Mapping[Component, Float[Tensor, "layer d_in"]] = field(default_factory=dict)
    """The same of what its linear reads, where it is one: the heads' outputs before o_proj, the MLP's neurons."""
    target_reads: Mapping[Component, Float[Tensor, "layer d_in"]] = field(default_factory=dict)
    """And of the target train prompts."""

    @property
    def n_points(self) -> int:
        """L+1."""
        return int(self.target_train.shape[1])

    @property
    def neutral_means(self) -> dict[Component, Float[Tensor, "layer d_model"]]:
        """The centre of affine edits: the mean over neutral prompts of what every component holds."""
        return {**self.neutral_writes, "resid_pre": self.neutral_train[:, :-1].double().mean(0)}


def activation_key(**depends_on: object) -> str:
    """SHA-256 over everything that activations depend on."""
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()


def save_activations(path: Path, activations: Activations, key: str) -> None:
    """Write the activations atomically, under their key."""
    tensors = {
        "target_train": activations.target_train,
        "neutral_train": activations.neutral_train,
        "target_val": activations.target_val,
        "neutral_val": activations.neutral_val,
        **{f"neutral_writes.{name}": mean for name, mean in activations.neutral_writes.items()},
        **{f"neutral_reads.{name}": mean for name, mean in activations.neutral_reads.items()},
        **{f"target_reads.{name}": mean for name, mean in activations.target_reads.items()},
    }
    write_tensors(path, tensors, {"key": key})


def load_activations(path: Path, key: str) -> Activations | None:
    """Read the activations; None where the file is missing or was collected from something else."""
    if not path.exists():
        return None
    try:
        tensors, about = read_tensors(path)
    except UserError:  # a damaged cache is no more than a missing one
        return None
    if about.get("key") != key:
        return None
    return Activations(
        tensors["target_train"],
        tensors["neutral_train"],
        tensors["target_val"],
        tensors["neutral_val"],
        {name: tensors[f"neutral_writes.{name}"] for name in WRITERS if f"neutral_writes.{name}" in tensors},
        {name: tensors[f"neutral_reads.{name}"] for name in WRITERS if f"neutral_reads.{name}" in tensors},
        {name: tensors[f"target_reads.{name}"] for name in WRITERS if f"target_reads.{name}" in tensors},
    )
