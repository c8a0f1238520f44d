"""Sets of directions by name: those that the settings mean, and others by other estimators and filters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from iconoclast_tl.activations.store import Activations
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.estimate import DirectionConfig, estimate_directions

AS_SET = "as set"
"""The name of the directions that the settings mean."""
UNFILTERED = "unfiltered"
"""The name of the same without filters."""


class DirectionSets(Mapping[str, Directions]):
    """Directions by name, each set estimated when it is first asked for."""

    def __init__(self, as_set: Directions, activations: Activations, others: Mapping[str, DirectionConfig]) -> None:
        self._known, self._activations, self._others = {AS_SET: as_set}, activations, others

    def __getitem__(self, name: str) -> Directions:
        """Raises KeyError for a name that there is not."""
        if name not in self._known:
            target, neutral = self._activations.target_train, self._activations.neutral_train
            as_set = self._known[AS_SET]
            vectors = estimate_directions(target, neutral, self._others[name])
            self._known[name] = Directions(vectors, as_set.separation, as_set.provenance)
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
