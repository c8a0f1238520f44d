"""`EditSpec`: what identifies an edit among all those that a search may build from the same directions and model.

A search compares specs, its files keep them, and `Source.build` turns one into an `Edit`. JSON keeps every number to
the bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.architecture.sites import WRITERS, Component
from iconoclast_tl.directions.sets import AS_SET
from iconoclast_tl.edits.config import RowNormalization
from iconoclast_tl.edits.profiles import Kernel

LayerStrengths = tuple[float, ...]
"""λ of every layer."""
HeadStrengths = tuple[tuple[float, ...], ...]
"""λ of every head of every layer."""
Strength = Kernel | LayerStrengths | HeadStrengths
"""The strengths of one component: a kernel's four numbers, one a layer, or one a head."""


@dataclass(frozen=True, kw_only=True)
class EditSpec:
    """An edit in words and numbers, without its tensors.

    Raises `ValueError` for numbers that are not finite, ragged or differing layers, and names that there are not.
    """

    point: float | None
    """The residual point of the one direction for all layers, between two points an interpolated one. None: each
    layer's own, of the stream after it."""
    affine: bool
    """Whether the edit ablates towards the neutral mean instead of towards zero."""
    row_normalization: RowNormalization = "none"
    directions: str = AS_SET
    """The name of the set of directions (`directions.sets`)."""
    strengths: Mapping[Component, Strength] = field(default_factory=dict)
    """By component; empty for a family, which is everything of an edit but its strengths."""

    def __post_init__(self) -> None:
        """Refuse what names no edit."""
        if self.point is not None and not (_is_number(self.point) and self.point >= 0):
            raise ValueError(f"point: got {self.point!r}, want None or a residual point from 0 on")
        if not isinstance(self.affine, bool):
            raise ValueError(f"affine: got {self.affine!r}, want true or false")
        if self.row_normalization not in get_args(RowNormalization):
            raise ValueError(f"row_normalization: got {self.row_normalization!r}")
        if not (isinstance(self.directions, str) and self.directions):
            raise ValueError(f"directions: got {self.directions!r}, want the name of a set")
        if self.strengths and set(self.strengths) != set(WRITERS):
            raise ValueError(f"strengths: got those of {', '.join(self.strengths)}, want {' and '.join(WRITERS)}")
        for component, strength in self.strengths.items():
            _require_well_formed(component, strength)
        lengths = {len(strength) for strength in self.strengths.values() if not isinstance(strength, Kernel)}
        if len(lengths) > 1:
            raise ValueError(f"strengths: got {' and '.join(map(str, sorted(lengths)))} layers, want as many")

    @property
    def family(self) -> EditSpec:
        """This spec without its strengths."""
        return replace(self, strengths={})

    @property
    def changes(self) -> bool:
        """Whether any strength is not 0."""
        return any(map(_changes, self.strengths.values()))

    def strengths_of(self, component: Component, n_layers: int) -> Float[Tensor, "layer *head"]:
        """λ of a component, float32; a kernel's on a model with this many layers."""
        strength = self.strengths[component]
        if isinstance(strength, Kernel):
            return strength.strengths(n_layers)
        return torch.tensor(strength, dtype=torch.float32)

    def __str__(self) -> str:
        """The family, such as `affine, point 5, unfiltered`."""
        where = "each layer's own" if self.point is None else f"point {self.point:g}"
        return f"{'affine' if self.affine else 'plain'}, {where}, {self.directions}"

    def to_json(self) -> dict[str, Any]:
        """All of it; `from_json` gives the same spec, to the bit."""
        strengths = {
            name: asdict(strength) if isinstance(strength, Kernel) else _as_lists(strength)
            for name, strength in self.strengths.items()
        }
        return {**{name: getattr(self, name) for name in _FIELDS}, "strengths": strengths}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EditSpec:
        """What `to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
        if set(content) != {*_FIELDS, "strengths"}:
            raise KeyError(f"a spec has {', '.join((*_FIELDS, 'strengths'))}; got {', '.join(content)}")
        strengths = {name: _from_json(strength) for name, strength in content["strengths"].items()}
        return cls(**{**content, "strengths": strengths})


_FIELDS = ("directions", "point", "affine", "row_normalization")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require_well_formed(component: Component, strength: Any) -> None:
    """strength: what may come from a file, and be anything."""
    heads = [] if isinstance(strength, Kernel) else [one for one in strength if isinstance(one, tuple)]
    if heads and (len(heads) != len(strength) or len({len(one) for one in heads}) > 1):
        raise ValueError(f"strengths of {component} are ragged")
    if not all(map(_is_number, found := _all_numbers(strength))) or not found:
        raise ValueError(f"strengths of {component}: got {found}, want finite numbers")


def _changes(strength: Strength) -> bool:
    if isinstance(strength, Kernel):
        return bool(strength.max_weight or strength.min_weight)
    return any(_all_numbers(strength))


def _all_numbers(strength: Any) -> list[Any]:
    if isinstance(strength, Kernel):
        return list(asdict(strength).values())
    return [number for one in strength for number in (one if isinstance(one, tuple) else (one,))]


def _as_lists(strength: LayerStrengths | HeadStrengths) -> list[Any]:
    return [list(one) if isinstance(one, tuple) else one for one in strength]


def _from_json(content: Any) -> Any:
    """Whether it is well formed is seen by `EditSpec` itself."""
    if isinstance(content, Mapping):
        return Kernel(**content)
    return as_tuples(content)


def as_tuples(strengths: Sequence[Any]) -> tuple[Any, ...]:
    """A list of numbers, or of lists of numbers, as a spec has them."""
    return tuple(tuple(one) if isinstance(one, Sequence) else one for one in strengths)
