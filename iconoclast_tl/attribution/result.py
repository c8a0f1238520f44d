"""The result of every method: a value for each part and prompt, with means and intervals over prompts.

A value is what the part contributes to the score: positive where the score falls without the part.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.attribution.parts import Part

RESAMPLES = 1000


@dataclass(frozen=True)
class ByPosition:
    """Values by position, counted from each prompt's last token (0); responses follow it (1, 2, …)."""

    positions: tuple[int, ...]
    values: Float[Tensor, "position part"]
    """Means over the prompts that have the position."""
    n: Int[Tensor, "position"]

    def minus(self, other: ByPosition) -> ByPosition:
        """The difference at the positions that both have."""
        both = tuple(place for place in self.positions if place in set(other.positions))
        mine, theirs = ([one.positions.index(place) for place in both] for one in (self, other))
        return ByPosition(both, self.values[mine] - other.values[theirs], torch.minimum(self.n[mine], other.n[theirs]))


@dataclass(frozen=True, repr=False)
class PartValue:
    """What one part contributes to the score: the mean over prompts with its 95% interval."""

    part: Part
    value: float
    low: float
    high: float

    def __repr__(self) -> str:
        """Such as `L4H1 3.10 [2.40, 3.75]`."""
        return f"{self.part} {self.in_words()}"

    def in_words(self) -> str:
        """Such as `3.10 [2.40, 3.75]`."""
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True, eq=False)
class Attribution:
    """What one method found: a value for every part and prompt."""

    method: str
    of: str
    """What is attributed, in words."""
    parts: tuple[Part, ...]
    values: Float[Tensor, "prompt part"]
    """float32 or float64, in the unit of the score."""
    by_position: ByPosition | None = None
    checks: dict[str, float] = field(default_factory=dict)
    """How well the method's own identity holds, such as the gap between sum and total."""

    @property
    def means(self) -> Float[Tensor, "part"]:
        """The mean of every part over prompts, float64."""
        return self.values.double().mean(0)

    @cached_property
    def resampled(self) -> Float[Tensor, "resample part"]:
        """Means over prompts drawn with replacement (bootstrap); the same draws for every method of as many prompts."""
        return resampling(len(self.values)) @ self.values.double()

    @cached_property
    def intervals(self) -> Float[Tensor, "part 2"]:
        """95% percentile intervals of the means."""
        bounds = torch.tensor([0.025, 0.975], dtype=torch.float64)
        return torch.quantile(self.resampled, bounds, dim=0).T

    def limited(self, parts: Collection[Part]) -> Attribution:
        """The same for these parts only."""
        places = [place for place, part in enumerate(self.parts) if part in parts]
        by_position = self.by_position
        if by_position is not None:
            by_position = replace(by_position, values=by_position.values[:, places])
        kept = tuple(self.parts[place] for place in places)
        return replace(self, parts=kept, values=self.values[:, places], by_position=by_position)

    def ranked(self, k: int, *components: str) -> list[PartValue]:
        """`top(k, *components)` with means and intervals."""
        places = [self.parts.index(part) for part in self.top(k, *components)]
        rows = zip(self.means[places].tolist(), self.intervals[places].tolist(), strict=True)
        return [PartValue(self.parts[i], mean, low, high) for i, (mean, (low, high)) in zip(places, rows, strict=True)]

    def top(self, k: int, *components: str) -> list[Part]:
        """The k parts of largest mean, largest first. components: kinds of parts to rank; by default all."""
        means = self.means.tolist()
        order = sorted(range(len(self.parts)), key=lambda i: (-means[i], self.parts[i]))
        return [self.parts[i] for i in order if not components or self.parts[i].component in components][:k]

    def to_json(self) -> dict[str, Any]:
        """As it stands in attribution.json."""
        rows = zip(self.parts, self.means.tolist(), self.intervals.tolist(), strict=True)
        found: dict[str, Any] = {
            "of": self.of,
            "n": len(self.values),
            "total": float(self.means.sum()),
            "checks": self.checks,
            "parts": [
                {"layer": p.layer, "component": p.component, "head": p.head, "value": value, "low": low, "high": high}
                for p, value, (low, high) in rows
            ],
        }
        if self.by_position is not None:
            found["by_position"] = {
                "positions": list(self.by_position.positions),
                "n": self.by_position.n.tolist(),
                "values": self.by_position.values.tolist(),
            }
        return found


def resampling(n: int) -> Float[Tensor, "resample n"]:
    """The weight of every prompt in every bootstrap resample; rows sum to 1."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(n, (RESAMPLES, n), generator=generator)
    return torch.zeros(RESAMPLES, n, dtype=torch.float64).scatter_add_(
        1, drawn, torch.full((RESAMPLES, n), 1 / n, dtype=torch.float64)
    )


class PositionSums:
    """Accumulates values by position, batch by batch."""

    def __init__(self, n_parts: int) -> None:
        self._n_parts = n_parts
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, set[int]] = {}

    def add(self, values: Float[Tensor, "row pos part"], real: Tensor, end: int, prompts: Int[Tensor, "row"]) -> None:
        """Add a batch. end: the column of the prompts' last token. prompts: the prompt that each row belongs to."""
        for column in range(values.shape[1]):
            here = real[:, column].bool()
            if bool(here.any()):
                place = column - end
                total = self._sums.get(place, torch.zeros(self._n_parts, dtype=torch.float64))
                self._sums[place] = total + values[here, column].double().sum(0)
                self._counts.setdefault(place, set()).update(prompts[here].tolist())

    def result(self) -> ByPosition:
        """Means over the prompts that have each position."""
        places = sorted(self._sums)
        n = torch.tensor([len(self._counts[place]) for place in places])
        values = torch.stack([self._sums[place] for place in places]) / n[:, None]
        return ByPosition(tuple(places), values, n)
