"""Rules that choose one direction among positions × residual points, from scores measured on val prompts.

- `separation`: the largest held-out d′, over points of the first 80% of the layers; no forward pass.
- `arditi` (Arditi et al. 2406.11717, and their published code): under ablation of the whole stream (`bypass`) the
  behaviour's log-odds at the first token of target prompts, under addition at the direction's own layer (`induce`)
  those of neutral prompts, and the KL of neutral prompts under ablation. Candidates of the last 20% of the layers, with
  KL above 0.1 or induce below 0 are removed, in this order; the least bypass is chosen.
- `cosmic` (Siu et al. 2506.00085): no output text. In the layers where target and neutral prompts are least alike,
  the cosine of target prompts under ablation with neutral ones, plus that of neutral prompts under addition with target
  ones; the last layers and large KL are removed as above; the largest sum is chosen.

A pre-screen may first drop the candidates of lowest held-out AUROC.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from iconoclast_tl.directions.config import SelectionConfig
from iconoclast_tl.foundation.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DirectionCandidate:
    """The main direction of one position and residual point, with what was measured of it; None: not measured."""

    position: int
    """−1 is the prompt's last token."""
    point: int
    d_prime: float
    auroc: float
    bypass: float | None = None
    """Log-odds of the behaviour on target prompts under ablation."""
    induce: float | None = None
    """The same on neutral prompts under addition."""
    kl: float | None = None
    """At the first token of neutral prompts under ablation, in nats."""
    to_neutral: float | None = None
    """Cosine of ablated target prompts with neutral ones."""
    to_target: float | None = None
    """Cosine of neutral prompts with the direction added, with target ones."""

    def __str__(self) -> str:
        """Such as `position -1, point 4`."""
        return f"position {self.position}, point {self.point}"


@dataclass(frozen=True)
class Selection:
    """The chosen candidate, and every candidate with the rule that removed it."""

    rule: str
    chosen: DirectionCandidate
    table: tuple[tuple[DirectionCandidate, str | None], ...]
    base: Mapping[str, float] = field(default_factory=dict)
    """The unedited model's `bypass` and `induce`, where it was run."""

    @property
    def ranked(self) -> list[DirectionCandidate]:
        """The candidates that no rule removed, best first."""
        return sorted((one for one, reason in self.table if reason is None), key=_ORDERS[self.rule], reverse=True)

    @property
    def removed(self) -> dict[str, int]:
        """How many candidates each rule removed."""
        return dict(Counter(reason for _, reason in self.table if reason is not None))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Selection:
        """The inverse of `to_json`. Raises KeyError or TypeError where something is missing."""
        rows = [dict(row) for row in content["candidates"]]
        reasons = [row.pop("removed_by") for row in rows]
        scored = tuple((DirectionCandidate(**row), reason) for row, reason in zip(rows, reasons, strict=True))
        place = content["position"], content["point"]
        chosen = next(one for one, _ in scored if (one.position, one.point) == place)
        return cls(content["rule"], chosen, scored, content["base"])

    def to_json(self) -> dict[str, Any]:
        """As it stands in selection.json."""
        rows = [{**_in_json(scored), "removed_by": reason} for scored, reason in self.table]
        place = {"position": self.chosen.position, "point": self.chosen.point}
        return {"rule": self.rule, **place, "base": dict(self.base), "candidates": rows}


def _nearest(name: str, table: Sequence[tuple[DirectionCandidate, str | None]]) -> str:
    """The value nearest to a threshold among the candidates that it removed."""
    mine = [one for one, reason in table if reason == name]
    if name.startswith("KL"):
        return f" (the least is {min(one.kl or 0.0 for one in mine):.3g})"
    if name.startswith("induce"):
        return f" (the largest is {max(one.induce if one.induce is not None else -math.inf for one in mine):.3g})"
    return ""


def _in_json(scored: DirectionCandidate) -> dict[str, Any]:
    """The fields of a candidate; numbers that are not finite become None, since JSON has none."""
    found = asdict(scored)
    return {name: value if value is None or math.isfinite(value) else None for name, value in found.items()}


Removal = tuple[str, str, Callable[[DirectionCandidate], bool]]
"""The name of a removal, the setting to loosen, and whether it removes a candidate."""


def prescreened(
    candidates: Sequence[DirectionCandidate], config: SelectionConfig, n_layers: int
) -> list[DirectionCandidate]:
    """The candidates that the model is run for: none of the last layers, and of the rest the share of largest AUROC."""
    early = [one for one in candidates if not _is_late(one, config, n_layers)]
    kept = math.ceil(config.keep * len(early))
    best = sorted(early, key=lambda one: -one.auroc)[:kept]
    return [one for one in early if one in best]


def select(candidates: Sequence[DirectionCandidate], config: SelectionConfig, n_layers: int) -> Selection:
    """Choose by `config.rule`. Raises `UserError` that counts what each rule removed where no candidate is left."""
    removals = _removals(config, n_layers)
    table = tuple((one, next((name for name, _, removes in removals if removes(one)), None)) for one in candidates)
    left = [one for one, reason in table if reason is None]
    if not left and config.rule == "separation":  # directions in the last layers only: better than none
        left, table = list(candidates), tuple((one, None) for one in candidates)
    if not left:
        counts = Counter(reason for _, reason in table)
        used = [(name, setting) for name, setting, _ in removals if counts[name]]
        raise UserError(
            f"the selection {config.rule} leaves none of {len(table)} candidates",
            got=", ".join(f"{name} removed {counts[name]}{_nearest(name, table)}" for name, _ in used),
            mend="loosen " + ", ".join(setting for _, setting in used),
        )
    return Selection(config.rule, max(left, key=_ORDERS[config.rule]), table)


def _is_late(one: DirectionCandidate, config: SelectionConfig, n_layers: int) -> bool:
    """Point p is what enters layer p, and p < ⌊L(1 − drop)⌋ is kept, as published; d′ alone keeps up to ⌈L(1 − drop)⌉:
    the points are its only candidates, and on a model of few layers the last fifth may be where a behaviour is.
    """
    if config.rule == "separation":
        return one.point > math.ceil(n_layers * (1 - config.drop_last) - 1e-9)
    return one.point >= _first_late(config, n_layers)


def _first_late(config: SelectionConfig, n_layers: int) -> int:
    return math.floor(n_layers * (1 - config.drop_last) + 1e-9)


def _removals(config: SelectionConfig, n_layers: int) -> list[Removal]:
    late: Removal = (
        f"point {_first_late(config, n_layers)} or later",
        "directions.selection.drop_last",
        lambda one: _is_late(one, config, n_layers),
    )
    if config.rule == "separation":
        return [(f"the last {config.drop_last:.0%} of the layers", *late[1:])]
    screen: Removal = ("the pre-screen", "directions.selection.keep", lambda one: one.kl is None)
    kl: Removal = (
        f"KL above {config.max_kl:g}", "directions.selection.max_kl", lambda one: not (one.kl or 0.0) <= config.max_kl
    )  # fmt: skip
    if config.rule == "cosmic":
        return [late, screen, ("a score that is not finite", "--dtype", lambda one: not _finite(_cosine(one))), kl]
    induce: Removal = (
        f"induce below {config.min_induce:g}",
        "directions.selection.min_induce",
        lambda one: (one.induce if one.induce is not None else -math.inf) < config.min_induce,
    )
    not_finite: Removal = (
        "a score that is not finite", "--dtype", lambda one: not all(map(_finite, (one.bypass, one.induce, one.kl)))
    )  # fmt: skip
    return [late, screen, not_finite, kl, induce]


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _cosine(one: DirectionCandidate) -> float:
    """COSMIC's score."""
    found = (one.to_neutral, one.to_target)
    return sum(value for value in found if value is not None) if None not in found else math.nan


_ORDERS: Mapping[str, Callable[[DirectionCandidate], float]] = {
    "separation": lambda one: one.d_prime,
    "arditi": lambda one: -(one.bypass if one.bypass is not None else math.inf),
    "cosmic": _cosine,
}
