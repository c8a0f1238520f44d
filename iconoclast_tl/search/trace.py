"""A trace: the points of a gradient search, price by price, and all that is needed to go on from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import read_json, write_json
from iconoclast_tl.search.proxy import Said

Numbers = list[Any]
"""A profile's numbers: nested lists of floats."""


@dataclass(frozen=True)
class Point:
    """Where a search stood at the end of one price."""

    parameters: dict[str, Any]
    """Of an edit."""
    numbers: Numbers
    """Of the profile; they made the strengths in `parameters`."""
    price: float
    """Of the grid; where responses fell apart before, steps were taken at a dearer one."""
    proxy_rate: float
    """Mean probability of the known ways into the behaviour, on train prompts."""
    proxy_kl: float
    said: Said
    """What a generation from the train prompts showed there."""
    val_missed: float | None = None
    """The share of val target prompts at which the goal is missed; None where val was not asked."""


@dataclass(frozen=True)
class Finalist:
    """A family that was left at the end of the competition."""

    family: Mapping[str, Any]
    """What names it."""
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
    """A gradient search as far as it went; one that is given it goes on as if it had not ended."""

    finalists: list[Finalist]
    """Best first."""
    unit: float
    """Of prices."""
    paths: Mapping[str, Any]
    """What is known of the ways into the behaviour."""
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
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Trace:
        """What `to_json` gave. Raises KeyError or TypeError where something is missing."""
        finalists = [Finalist(**finalist) for finalist in content["finalists"]]
        walks = [_walk(walk) for walk in content["walks"]]
        return cls(**{**content, "finalists": finalists, "walks": walks})


def _walk(content: Mapping[str, Any]) -> Walk:
    loose, strict = ([_point(point) for point in content[side]] for side in ("loose", "strict"))
    return Walk(content["layer"], loose, strict)


def _point(content: Mapping[str, Any]) -> Point:
    return Point(**{**content, "said": Said(**content["said"])})


def write_trace(path: Path, trace: Trace, about: Mapping[str, Any]) -> None:
    """Keep a trace, with what else a result says of it."""
    write_json(path, {"trace": trace.to_json(), "about": dict(about)})


def read_trace(path: Path) -> tuple[Trace | None, dict[str, Any]]:
    """What `write_trace` kept; None and nothing where there is none. `UserError` where the file is damaged."""
    if not path.is_file():
        return None, {}
    content = read_json(path)
    try:
        return Trace.from_json(content["trace"]), content["about"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged", got=error, mend="remove it to search again, or pass another --out"
        ) from error
