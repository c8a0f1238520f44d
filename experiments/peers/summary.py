"""From what every run cost and what the judge saw of it, to one table.

A record is one run: `organism`, `seed`, `contestant`, `outcome` (job.json) and `judged` (judged.json). Ratios are taken
run by run, ours over Heretic's of the same organism and seed, and then summarised as median [smallest, largest].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from experiments.peers import real
from experiments.peers.hypervolume import hypervolume

Record = Mapping[str, Any]
MEGABYTE = 1e6


@dataclass(frozen=True)
class Measure:
    """One column."""

    title: str
    digits: int
    percent: bool = False


MEASURES = {
    "wall_seconds": Measure("whole job, s", 1),
    "exported_seconds": Measure("to the export, s", 1),
    "search_seconds": Measure("search, s", 1),
    "processor_seconds": Measure("processor, s", 1),
    "search_processor_seconds": Measure("search processor, s", 1),
    "peak_megabytes": Measure("peak, MB", 0),
    "hypervolume": Measure("hypervolume", 4),
    "shortfall": Measure("shortfall", 4),
    "behaviour": Measure("behaviour", 0, percent=True),
    "answered": Measure("answered", 0, percent=True),
    "broken": Measure("broken", 0, percent=True),
    "spill": Measure("spill", 0, percent=True),
    "kl_sequence": Measure("KL 24 tokens", 4),
    "kl_first_token": Measure("KL first", 4),
    "gap": Measure("test − val", 0, percent=True),
}
"""What is shown of a run, in order.

`shortfall` is 1 − hypervolume, the part of the square that is not dominated: two good fronts both have a hypervolume of
nearly 1, and only this tells them apart. From `behaviour` on, a measure is of the chosen point on the test split; `gap`
is its behaviour rate on test less that on val, both by the judge.
"""

RATIOS = (
    "wall_seconds",
    "exported_seconds",
    "search_seconds",
    "processor_seconds",
    "search_processor_seconds",
    "peak_megabytes",
    "hypervolume",
    "shortfall",
)
NONE = "–"
"""In the place of what was not measured."""


def measures(record: Record) -> dict[str, float]:
    """All measures of one run, less those that its record does not hold."""
    outcome, judged = record["outcome"], record["judged"]["models"]
    chosen = judged[outcome["chosen"]]
    target = chosen["target_test"]
    area = front_hypervolume(judged)
    found = {
        "wall_seconds": outcome["wall_seconds"],
        "exported_seconds": outcome["wall_seconds"] - outcome.get("report_seconds", 0.0),
        "search_seconds": outcome["search_seconds"],
        "processor_seconds": outcome.get("processor_seconds"),
        "search_processor_seconds": outcome.get("search_processor_seconds"),
        "peak_megabytes": outcome["peak_bytes"] / MEGABYTE,
        "hypervolume": area,
        "shortfall": 1 - area,
        "behaviour": target["behaviour"],
        "answered": target["answered"],
        "broken": target["broken"],
        "spill": chosen["neutral_test"]["behaviour"],
        "kl_sequence": chosen["kl_sequence"],
        "kl_first_token": chosen["kl_first_token"],
        "gap": target["behaviour"] - chosen["target_val"]["behaviour"] if "target_val" in chosen else None,
    }
    return {key: value for key, value in found.items() if value is not None}


def points(record: Record) -> list[dict[str, Any]]:
    """What the judge saw of every point of a run, the base first, the chosen one marked."""
    judged = record["judged"]["models"]
    return [
        {"contestant": record["contestant"], "seed": record["seed"], "point": name, "chosen": name == chosen, **one}
        for chosen in (record["outcome"]["chosen"],)
        for name, one in sorted(judged.items(), key=lambda item: item[0] != "base")
    ]


def front_hypervolume(judged: Mapping[str, Any], kl: str = "kl_sequence") -> float:
    """Hypervolume of all exported points on test: behaviour rate × KL, reference (1, 1); the base is no point.

    A model whose KL is not finite adds nothing.
    """
    points = [(one["target_test"]["behaviour"], one[kl]) for name, one in judged.items() if name != "base"]
    return hypervolume((rate, divergence) for rate, divergence in points if math.isfinite(divergence))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest and number."""
    return {"median": median(values), "low": min(values), "high": max(values), "n": len(values)}


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """`runs`: every measure by organism and contestant; `means`: by contestant, over all its runs on organisms;
    `ratios`: ours over each other, by organism and over all organisms; `points`: every judged point of the real model.
    """
    found = [(record, measures(record)) for record in records]
    groups: dict[str, dict[str, list[dict[str, float]]]] = {}
    for record, one in found:
        groups.setdefault(record["organism"], {}).setdefault(record["contestant"], []).append(one)
    runs = {
        organism: {name: _spreads(values, MEASURES) for name, values in contestants.items()}
        for organism, contestants in groups.items()
    }
    everything: dict[str, list[dict[str, float]]] = {}
    for record, one in found:
        if record["organism"] != real.NAME:
            everything.setdefault(record["contestant"], []).append(one)
    means = {
        name: {key: fmean(one[key] for one in values) for key in _shared(values, MEASURES)}
        for name, values in everything.items()
    }
    judged = [point for record in records if record["organism"] == real.NAME for point in points(record)]
    return {"runs": runs, "means": means, "ratios": _ratios(found), "points": judged}


def markdown(summary: Mapping[str, Any]) -> str:
    """The tables of the README."""
    head = ["organism", "contestant", *(one.title for one in MEASURES.values())]
    rows = [
        [organism, name, *(_cell(values.get(key), one) for key, one in MEASURES.items())]
        for organism, contestants in summary["runs"].items()
        for name, values in contestants.items()
    ]
    parts = [_table(head, rows)]
    means = [
        [name, *(_number(values.get(key), one) for key, one in MEASURES.items())]
        for name, values in summary["means"].items()
    ]
    if means:
        parts.append(_table(["mean of all runs", *head[2:]], means))
    ratio_rows = [
        [pair, organism, *(_cell(values.get(key), Measure("", 3)) for key in RATIOS), str(values[RATIOS[0]]["n"])]
        for pair, organisms in summary["ratios"].items()
        for organism, values in organisms.items()
    ]
    if ratio_rows:
        titles = [MEASURES[key].title.split(",")[0] for key in RATIOS]
        parts.append(_table(["ratio", "organism", *titles, "pairs"], ratio_rows))
    if summary.get("points"):
        parts.append(_point_table(summary["points"]))
    return "\n\n".join(parts)


def _ratios(found: Sequence[tuple[Record, dict[str, float]]]) -> dict[str, Any]:
    ratios: dict[str, dict[str, list[dict[str, float]]]] = {}
    for ours, mine in found:
        if not ours["contestant"].startswith("ours"):
            continue
        for other, theirs in found:
            same = (other["organism"], other["seed"]) == (ours["organism"], ours["seed"])
            if same and not other["contestant"].startswith("ours"):
                pair = ratios.setdefault(f"{ours['contestant']} / {other['contestant']}", {})
                one = {key: _ratio(mine[key], theirs[key]) for key in RATIOS if key in mine and key in theirs}
                pair.setdefault(ours["organism"], []).append(one)
    for organisms in ratios.values():
        pooled = [one for name, values in organisms.items() if name != real.NAME for one in values]
        organisms |= {"all": pooled} if pooled else {}
    return {
        pair: {organism: _spreads(values, RATIOS) for organism, values in organisms.items()}
        for pair, organisms in ratios.items()
    }


def _ratio(mine: float, theirs: float) -> float:
    return mine / theirs if theirs else math.inf


def _spreads(values: Sequence[Mapping[str, float]], keys: Iterable[str]) -> dict[str, Any]:
    return {key: spread([one[key] for one in values]) for key in _shared(values, keys)}


def _shared(values: Sequence[Mapping[str, float]], keys: Iterable[str]) -> list[str]:
    """The keys that all values have."""
    return [key for key in keys if all(key in one for one in values)]


def _point_table(judged: Sequence[Mapping[str, Any]]) -> str:
    """One row a point; the base's once."""
    head = ["real model", "point", "declined [95%]", "answered", "degenerate"]
    head += [f"{name}: {what}" for name in ("neutral", "borderline") for what in ("declined", "degenerate")]
    head += ["KL 24 tokens", "KL first"]
    rows: list[list[str]] = []
    for one in judged:
        target, neutral, borderline = (one[name] for name in ("target_test", "neutral_test", "borderline"))
        base = one["point"] == "base"
        if base and rows:
            continue
        low, high = target["intervals"]["behaviour"]
        rows.append(
            [
                "base" if base else one["contestant"],
                NONE if base else f"{one['point']}{' (chosen)' if one['chosen'] else ''}",
                f"{target['behaviour']:.0%} [{low:.0%}, {high:.0%}] of {target['n']}",
                *(f"{target[key]:.0%}" for key in ("answered", "degenerate")),
                *(f"{one_set[key]:.0%}" for one_set in (neutral, borderline) for key in ("behaviour", "degenerate")),
                *(f"{one[key]:.4f}" for key in ("kl_sequence", "kl_first_token")),
            ]
        )
    return _table(head, rows)


def _number(value: float | None, measure: Measure) -> str:
    if value is None:
        return NONE
    digits = measure.digits + measure.percent  # a mean of shares lies between two of them
    return f"{value * 100:.{digits}f}%" if measure.percent else f"{value:.{digits}f}"


def _cell(value: Mapping[str, Any] | None, measure: Measure) -> str:
    if value is None:
        return NONE
    scale = 100 if measure.percent else 1
    low, mid, high = (f"{value[key] * scale:.{measure.digits}f}" for key in ("low", "median", "high"))
    unit = "%" if measure.percent else ""
    return f"{mid}{unit}" if low == high else f"{mid}{unit} [{low}, {high}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
