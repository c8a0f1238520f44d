"""A trace: the points of a gradient search, price by price, and all that is needed to go on from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import read_json, write_json
from iconoclast_tl.search.proxy import OnPolicy
from iconoclast_tl.search.spec import EditSpec

Numbers = list[Any]
"""A profile's numbers: nested lists of floats."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where a search stood at the end of one price."""

    spec: EditSpec
    """Of its edit."""
    numbers: Numbers
    """Of the profile; they made the strengths in `spec`."""
    price: float
    """Of the grid; where responses fell apart before, steps were taken at a dearer one."""
    proxy_rate: float
    """Mean probability of the known prefixes that open the behaviour, on train prompts."""
    proxy_kl: float
    said: OnPolicy
    """What a generation from the train prompts showed there."""
    val_missed: float | None = None
    """The share of val target prompts at which the goal is missed; None where nothing was generated on val."""


@dataclass(frozen=True)
class Finalist:
    """A family that was left at the end of the competition."""

    family: EditSpec
    """Without strengths."""
    numbers: Numbers
    """With which it left off."""


@dataclass
class Walk:
    """What one finalist gives over the prices, as far as it was walked."""

    layer: int
    """The first that is edited."""
    loose: list[Point] = field(default_factory=list)
    """From the price of the start to looser ones."""
    strict: list[Point] = field(default_factory=list)
    """From the price of the start to stricter ones."""

    @property
    def points(self) -> list[Point]:
        """Strict to loose."""
        return [*reversed(self.strict), *self.loose]


@dataclass
class Trace:
    """A price sweep as far as it went; a sweep that is given it continues as if it had not been stopped."""

    finalists: list[Finalist]
    """Best first."""
    unit: float
    """Of prices."""
    prefixes: Mapping[str, Any]
    """The known prefixes that open the behaviour, and innocent responses."""
    walks: list[Walk] = field(default_factory=list)
    """Of the first finalists; more than one only where the first left the behaviour as it was."""
    done: bool = False
    start: int | None = None
    """Where in the prices walks begin; None: in their middle."""

    @property
    def points(self) -> list[Point]:
        """Walk by walk."""
        return [point for walk in self.walks for point in walk.points]

    def to_json(self) -> dict[str, Any]:
        """All of it; floats come back to the bit."""
        return {
            **asdict(self),
            "finalists": [{"family": one.family.to_json(), "numbers": one.numbers} for one in self.finalists],
            "walks": [
                {"layer": one.layer, "loose": _points_to_json(one.loose), "strict": _points_to_json(one.strict)}
                for one in self.walks
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Trace:
        """What `to_json` gave. Raises KeyError, TypeError or ValueError where something is missing or wrong."""
        finalists = [Finalist(EditSpec.from_json(one["family"]), one["numbers"]) for one in content["finalists"]]
        walks = [_walk(walk) for walk in content["walks"]]
        return cls(**{**content, "finalists": finalists, "walks": walks})


def _walk(content: Mapping[str, Any]) -> Walk:
    loose, strict = ([_point(point) for point in content[side]] for side in ("loose", "strict"))
    return Walk(content["layer"], loose, strict)


def _points_to_json(points: Sequence[Point]) -> list[dict[str, Any]]:
    return [{**asdict(point), "spec": point.spec.to_json()} for point in points]


def _point(content: Mapping[str, Any]) -> Point:
    return Point(**{**content, "spec": EditSpec.from_json(content["spec"]), "said": OnPolicy(**content["said"])})


def write_trace(path: Path, trace: Trace, about: Mapping[str, Any]) -> None:
    """Write a trace, with what results.json says of it."""
    write_json(path, {"trace": trace.to_json(), "about": dict(about)})


def read_trace(path: Path) -> tuple[Trace | None, dict[str, Any]]:
    """What `write_trace` kept; None and nothing where there is none. `UserError` where the file is damaged."""
    if not path.is_file():
        return None, {}
    content = read_json(path)
    try:
        return Trace.from_json(content["trace"]), content["about"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged", got=error, mend="remove it to search again, or pass another --out"
        ) from error
