"""Sets of directions by name: those that the settings mean, and others by other estimators and filters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from jaxtyping import Bool
from torch import Tensor

from iconoclast_tl.activations.store import Activations
from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.estimate import estimate_directions
from iconoclast_tl.directions.separation import separation

AS_SET = "as set"
"""The name of the directions that the settings mean."""
UNFILTERED = "unfiltered"
"""The name of the same without filters."""


class DirectionSets(Mapping[str, Directions]):
    """Directions by name, each set estimated when it is first asked for, at the position of those that are set."""

    def __init__(
        self,
        as_set: Directions,
        activations: Activations,
        others: Mapping[str, DirectionConfig],
        shown: Bool[Tensor, "rows"] | None = None,
    ) -> None:
        """shown: what the model did, for a probe (`directions.estimate`)."""
        self._known, self._activations, self._others, self._shown = {AS_SET: as_set}, activations, others, shown

    def __getitem__(self, name: str) -> Directions:
        """Raises KeyError for a name that there is not."""
        if name not in self._known:
            as_set = self._known[AS_SET]
            residuals = self._activations.at(as_set.position)
            target, neutral = residuals.target_train, residuals.neutral_train
            found = estimate_directions(target, neutral, self._others[name], self._shown)
            apart = separation(found.vectors[0], residuals.target_val, residuals.neutral_val)
            # The point that was chosen is one of the directions as set.
            about = {**as_set.provenance, "selection": {"position": as_set.position}, "facts": None}
            self._known[name] = Directions(found.vectors, apart, found.weights, about)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        """`as set` first."""
        return iter((AS_SET, *self._others))

    def __len__(self) -> int:
        """How many sets there are."""
        return 1 + len(self._others)


def set_name(config: DirectionConfig) -> str:
    """Of the directions by an estimator and filters, such as `mean, orthogonalized, benign rank 8`."""
    parts: list[str] = [config.estimator]
    parts += ["orthogonalized"] if config.orthogonalize else []
    parts += [f"benign rank {config.benign_rank}"] if config.benign_rank else []
    return ", ".join(parts)
