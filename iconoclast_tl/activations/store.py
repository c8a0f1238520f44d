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
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.architecture.sites import WRITERS, Component
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import read_tensors
from iconoclast_tl.foundation.tensor_file import TensorStream, streamed_tensors

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


@dataclass(frozen=True, kw_only=True, repr=False)
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
    fingerprint: str | None = None
    """Of the model that they were collected from, where that is known."""
    prompts: str | None = None
    """The digest of the prompts that they were collected from, where that is known."""

    def __repr__(self) -> str:
        """Such as `Activations(target 300+100, neutral 300+100, 7 points, d_model 128, position -1)`."""
        target, neutral = (f"{len(a)}+{len(b)}" for a, b in self._sides)
        places = f"position{'s' if len(self.positions) > 1 else ''} {', '.join(map(str, self.positions))}"
        width = self.target_train.shape[-1]
        return f"Activations(target {target}, neutral {neutral}, {self.n_points} points, d_model {width}, {places})"

    @property
    def _sides(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return (self.target_train, self.target_val), (self.neutral_train, self.neutral_val)

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


@runtime_checkable
class Sink(Protocol):
    """Where activations go while they are collected."""

    def put(self, name: str, rows: Sequence[int], values: Float[Tensor, "*outer batch width"]) -> None:
        """Keep `rows` of the last but one axis of a tensor whose shape was announced."""

    def add(self, name: str, tensor: Float[Tensor, "..."]) -> None:
        """Keep a small tensor whole."""


class InMemory:
    """A `Sink` that keeps everything in memory."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], about: Mapping[str, Any]) -> None:
        self._tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
        self._about = about

    def put(self, name: str, rows: Sequence[int], values: Float[Tensor, "*outer batch width"]) -> None:
        """Keep `rows` of the last but one axis."""
        self._tensors[name][..., list(rows), :] = values.detach().cpu().float()

    def add(self, name: str, tensor: Float[Tensor, "..."]) -> None:
        """Keep a tensor whole."""
        self._tensors[name] = tensor.detach().cpu()

    def activations(self) -> Activations:
        """All that was put."""
        return _activations(self._tensors, self._about)


@contextmanager
def activation_sink(
    path: Path | None, sizes: Mapping[str, int], n_positions: int, n_points: int, d_model: int, about: Mapping[str, Any]
) -> Iterator[TensorStream | InMemory]:
    """Where activations are collected into: a file, which appears when it is whole, or memory where `path` is None.

    sizes: the prompts of every set. about: what the file says of itself, with the `key` by which it is known again.
    Residuals go in by `keep_in` and means by `add_means`. Raises `UserError` where the disk has no room.
    """
    shapes = {name: (n_positions, n_points, sizes[name], d_model) for name in SETS}
    if path is None:
        yield InMemory(shapes, about)
        return
    with streamed_tensors(path, shapes, about) as stream:
        yield stream


def keep_in(sink: Sink, name: str) -> Callable[[Sequence[int], Float[Tensor, "batch position point d_model"]], None]:
    """What takes the residuals of a set, batch by batch, into its place."""
    return lambda rows, residuals: sink.put(name, rows, residuals.permute(1, 2, 0, 3))


def add_means(sink: Sink, name: str, means: Mapping[Component, Float[Tensor, "layer d"]]) -> None:
    """Keep `neutral_writes`, `neutral_reads` or `target_reads` beside the residuals."""
    for component, mean in means.items():
        sink.add(f"{name}.{component}", mean)


def save_activations(path: Path, activations: Activations, key: str) -> None:
    """Write activations that are in memory, atomically, under their key."""
    sizes = {name: len(getattr(activations, name)) for name in SETS}
    positions, d_model = activations.positions, activations.target_train.shape[-1]
    about = {"key": key, "fingerprint": activations.fingerprint, "prompts": activations.prompts}
    with activation_sink(path, sizes, len(positions), activations.n_points, d_model, about) as sink:
        for name in SETS:
            residuals = torch.stack([getattr(activations.at(position), name) for position in positions], dim=1)
            keep_in(sink, name)(range(sizes[name]), residuals)
        for name in MEANS:
            add_means(sink, name, getattr(activations, name))


def load_activations(path: Path, key: str) -> Activations | None:
    """Map the activations; None where the file is missing or was collected from something else."""
    if not path.exists():
        return None
    try:
        tensors, about = read_tensors(path)
    except UserError:  # a damaged cache is no more than a missing one
        return None
    return _activations(tensors, about) if about.get("key") == key else None


def _activations(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Activations:
    at = {
        -1 - index: Residuals(*(tensors[name][index].transpose(0, 1) for name in SETS))
        for index in range(len(tensors["target_train"]))
    }
    last = at.pop(-1)
    writes, neutral_reads, target_reads = (_means(tensors, name) for name in MEANS)
    return Activations(
        target_train=last.target_train,
        neutral_train=last.neutral_train,
        target_val=last.target_val,
        neutral_val=last.neutral_val,
        neutral_writes=writes,
        neutral_reads=neutral_reads,
        target_reads=target_reads,
        earlier=at,
        fingerprint=about.get("fingerprint"),
        prompts=about.get("prompts"),
    )


def _means(tensors: Mapping[str, Tensor], name: str) -> dict[Component, Tensor]:
    return {component: tensors[f"{name}.{component}"] for component in WRITERS if f"{name}.{component}" in tensors}
