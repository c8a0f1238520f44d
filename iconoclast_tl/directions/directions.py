"""Directions with their provenance, and the file that keeps them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.directions.geometry import interpolate
from iconoclast_tl.foundation.drawing import Drawn
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import read_tensors, write_tensors


@dataclass(frozen=True, repr=False)
class Directions(Drawn):
    """Unit directions at every residual point, and how they came about."""

    vectors: Float[Tensor, "k point d_model"]
    """Orthonormal at each point, the main one first; zero where there is none. k = 1 of most estimators."""
    separation: Float[Tensor, "point"]
    """d′ of the main ones on the val prompts."""
    weights: Float[Tensor, "k point"]
    """Of an edit's strengths by each direction: 1 for the main one; 0 where there is none."""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Such as `Directions(mean, orthogonalized, 7 points, d_model 128, best: point 4 with d′ 5.31)`."""
        k, n_points, width = self.vectors.shape
        many = f", up to {k} a point" if k > 1 else ""
        best = f"point {self.best} with d′ {float(self.separation[self.best]):.2f}"
        return f"Directions({self.name}, {n_points} points, d_model {width}{many}, best: {best})"

    @property
    def name(self) -> str:
        """Estimator and filters, such as `mean, orthogonalized, benign rank 8`; as far as they are known."""
        about = self.provenance.get("directions") or {}
        parts = [str(about.get("estimator", "of an unknown estimator"))]
        parts += ["orthogonalized"] if about.get("orthogonalize") else []
        parts += [f"benign rank {about['benign_rank']}"] if about.get("benign_rank") else []
        return ", ".join(parts)

    @property
    def best(self) -> int:
        """The point with the largest d′ among those of the first 80%, rounded up, that have a direction.

        The last layers read the direction out rather than hold it; Arditi et al. (2406.11717) drop as many. Or the
        point that a selection chose, where one was made (`selection.rules`).
        """
        if self.chosen is not None:
            return self.chosen
        last = math.ceil(0.8 * self.n_layers)
        defined = [point for point in range(self.n_layers + 1) if bool(self.main[point].any())]
        candidates = [point for point in defined if point <= last] or defined
        return max(candidates, key=lambda point: float(self.separation[point]), default=0)

    @property
    def main(self) -> Float[Tensor, "point d_model"]:
        """The first direction of every point."""
        return self.vectors[0]

    @property
    def n_layers(self) -> int:
        """Layers of the model that these directions belong to."""
        return int(self.vectors.shape[1]) - 1

    @property
    def chosen(self) -> int | None:
        """The point that a selection chose, if one was made."""
        point = (self.provenance.get("selection") or {}).get("point")
        return None if point is None else int(point)

    @property
    def position(self) -> int:
        """Where in the prompts they were estimated: −1 is the last token."""
        return int((self.provenance.get("selection") or {}).get("position", -1))

    @classmethod
    def single(
        cls,
        vectors: Float[Tensor, "point d_model"],
        separation: Float[Tensor, "point"],
        provenance: Mapping[str, Any] | None = None,
    ) -> Directions:
        """One direction a point."""
        return cls(vectors[None], separation, vectors.any(-1).float()[None], provenance or {})

    def digest(self) -> str:
        """SHA-256 of the vectors and their weights, of position and chosen point."""
        state = hashlib.sha256(f"{self.position} {self.chosen}".encode())
        for tensor in (self.vectors, self.weights):
            state.update(tensor.float().contiguous().numpy().tobytes())
        return state.hexdigest()

    def at(self, point: float | None = None) -> Float[Tensor, "d_model"]:
        """The main unit direction of a residual point, maybe a fractional one; of the best one where none is named.

        `UserError` where there is none.
        """
        return self.span(self.best if point is None else point)[0]

    def span(self, point: float) -> Float[Tensor, "k d_model"]:
        """All unit directions of a residual point, each interpolated; zero where there is none but the main one.

        `UserError` where there is no main one. Interpolated ones are orthonormalised by whoever builds an edit.
        """
        if not 0 <= point <= self.n_layers:
            raise UserError(
                f"residual point {point:g} is outside 0..{self.n_layers}",
                got=f"a model with {self.n_layers} layers",
                mend=f"pass a residual point from 1 to {self.n_layers}",
            )
        vectors = torch.stack([interpolate(own, point) for own in self.vectors])
        if not bool(vectors[0].any()):
            raise UserError(
                f"there is no direction at residual point {point:g}",
                got="target and neutral prompts hold the same there",
                mend=f"choose a later one, up to {self.n_layers}",
            )
        return vectors

    def weights_at(self, point: float) -> Float[Tensor, "k"]:
        """Weights of `span(point)`, between two points the mean of those that have the direction."""
        low, share = int(point), point - int(point)
        ends = [low, min(low + 1, self.n_layers)]
        shares = torch.tensor([1 - share, share]) * self.vectors[:, ends].any(-1)
        total = shares.sum(-1)
        return (shares * self.weights[:, ends]).sum(-1) / torch.where(total > 0, total, torch.ones_like(total))


def save_directions(path: Path, directions: Directions) -> None:
    """Write the directions atomically, with their provenance."""
    tensors = {"vectors": directions.vectors, "separation": directions.separation, "weights": directions.weights}
    write_tensors(path, tensors, directions.provenance)


def load_directions(path: Path, n_layers: int, d_model: int) -> Directions:
    """Read directions; `UserError` where they belong to a model of another shape."""
    if not path.exists():
        raise UserError(f"there is no directions file {path}", want="a directions.safetensors of this tool")
    tensors, provenance = read_tensors(path)
    if not {"vectors", "separation"} <= tensors.keys():
        raise UserError(f"{path} holds no directions", got=", ".join(tensors), want="vectors and separation")
    vectors = tensors["vectors"]
    if vectors.ndim == 2:  # as they were written before a point could have several
        vectors = vectors[None]
    points, width = vectors.shape[1:]
    if (points, width) != (n_layers + 1, d_model):
        raise UserError(
            f"the directions in {path} are of another model",
            got=f"{points - 1} layers, d_model {width}",
            want=f"{n_layers} layers, d_model {d_model}",
            mend="estimate them on this model with `iconoclast-tl directions`",
        )
    weights = tensors.get("weights", vectors.any(-1).float())
    return Directions(vectors, tensors["separation"], weights, provenance)
