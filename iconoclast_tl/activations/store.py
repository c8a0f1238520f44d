"""The activations of a contrast set, and the file that keeps them between stages.

The file is keyed by everything that its numbers depend on, so that a later stage (or an interrupted run) reads it where
the key agrees and collects again where it does not. It is written while prompts are collected and takes its name when
it is whole: a collection that is interrupted leaves what was there before, and starts from its first prompt again.

Residuals lie in the file as `position point prompt d_model`, so that those of one position and point, which is what
estimators read, lie side by side. They are mapped and not read: in memory is what is being looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import read_tensors
from iconoclast_tl.foundation.tensor_file import TensorStream, streamed_tensors
from iconoclast_tl.models.sites import WRITERS, Component

CONTENT = 3
"""Counts what the file holds: one of an earlier content is collected again."""


SETS = ("target_train", "neutral_train", "target_val", "neutral_val")
MEANS = ("neutral_writes", "neutral_reads", "target_reads")


@dataclass(frozen=True)
class Residuals:
    """Residuals of the train and val prompts at one position, float32."""

    target_train: Float[Tensor, "n_target point d_model"]
    neutral_train: Float[Tensor, "n_neutral point d_model"]
    target_val: Float[Tensor, "m_target point d_model"]
    neutral_val: Float[Tensor, "m_neutral point d_model"]


@dataclass(frozen=True)
class Activations:
    """Last-token residuals of the train and val prompts, those at earlier positions, and the writers' means."""

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
    earlier: Mapping[int, Residuals] = field(default_factory=dict)
    """Residuals at −2, −3 and so on, as far as they were collected."""

    @property
    def positions(self) -> tuple[int, ...]:
        """Where residuals were collected, from the prompt's last token (−1) back."""
        return (-1, *sorted(self.earlier, reverse=True))

    def at(self, position: int = -1) -> Residuals:
        """The residuals at one position; `UserError` for one that was not collected."""
        if position == -1:
            return Residuals(self.target_train, self.neutral_train, self.target_val, self.neutral_val)
        if position not in self.earlier:
            raise UserError(
                f"residuals at position {position} were not collected",
                want=f"one of {', '.join(map(str, self.positions))}",
                mend="collect more with --set activations.positions=N (`directions --show-positions` lists them)",
            )
        return self.earlier[position]

    def at_or_last(self, position: int) -> Residuals:
        """The same; of one that was not collected, as of directions from elsewhere, those at the last token."""
        return self.at(position if position in self.positions else -1)

    @property
    def n_points(self) -> int:
        """L+1."""
        return int(self.target_train.shape[1])

    @property
    def neutral_means(self) -> dict[Component, Float[Tensor, "layer d_model"]]:
        """The centre of affine edits: the mean over neutral prompts of what every component holds."""
        # Point by point: together they may not fit into memory.
        points = [self.neutral_train[:, point].double().mean(0) for point in range(self.n_points - 1)]
        return {**self.neutral_writes, "resid_pre": torch.stack(points)}


def activation_key(**depends_on: object) -> str:
    """SHA-256 over everything that activations depend on."""
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def streamed_activations(
    path: Path, sizes: Mapping[str, int], n_positions: int, n_points: int, d_model: int, key: str
) -> Iterator[TensorStream]:
    """The activations file while it is collected, atomically, under its key; `sizes` are the prompts of every set.

    Residuals go in by `keep_in` and means by `add_means`. Raises `UserError` where the disk has no room.
    """
    shapes = {name: (n_positions, n_points, sizes[name], d_model) for name in SETS}
    with streamed_tensors(path, shapes, {"key": key}) as stream:
        yield stream


def keep_in(
    stream: TensorStream, name: str
) -> Callable[[Sequence[int], Float[Tensor, "batch position point d_model"]], None]:
    """What takes the residuals of a set, batch by batch, into its file."""
    return lambda rows, residuals: stream.put(name, rows, residuals.permute(1, 2, 0, 3))


def add_means(stream: TensorStream, name: str, means: Mapping[Component, Float[Tensor, "layer d"]]) -> None:
    """Write `neutral_writes`, `neutral_reads` or `target_reads` behind the residuals."""
    for component, mean in means.items():
        stream.add(f"{name}.{component}", mean)


def save_activations(path: Path, activations: Activations, key: str) -> None:
    """Write activations that are in memory, atomically, under their key."""
    sizes = {name: len(getattr(activations, name)) for name in SETS}
    positions, d_model = activations.positions, activations.target_train.shape[-1]
    with streamed_activations(path, sizes, len(positions), activations.n_points, d_model, key) as stream:
        for name in SETS:
            residuals = torch.stack([getattr(activations.at(position), name) for position in positions], dim=1)
            keep_in(stream, name)(range(sizes[name]), residuals)
        for name in MEANS:
            add_means(stream, name, getattr(activations, name))


def load_activations(path: Path, key: str) -> Activations | None:
    """Map the activations; None where the file is missing or was collected from something else."""
    if not path.exists():
        return None
    try:
        tensors, about = read_tensors(path)
    except UserError:  # a damaged cache is no more than a missing one
        return None
    if about.get("key") != key:
        return None
    at = {
        -1 - index: Residuals(*(tensors[name][index].transpose(0, 1) for name in SETS))
        for index in range(len(tensors["target_train"]))
    }
    last = at.pop(-1)
    writes, neutral_reads, target_reads = (_means(tensors, name) for name in MEANS)
    return Activations(
        last.target_train,
        last.neutral_train,
        last.target_val,
        last.neutral_val,
        writes,
        neutral_reads,
        target_reads,
        at,
    )


def _means(tensors: Mapping[str, Tensor], name: str) -> dict[Component, Tensor]:
    return {component: tensors[f"{name}.{component}"] for component in WRITERS if f"{name}.{component}" in tensors}
