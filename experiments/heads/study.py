"""How many heads carry a behaviour, and what an edit of a few heads costs beside one of whole layers.

On organisms of three architectures × five seeds: (1) for every method of attribution, how many heads hold 50, 90 and
99% of its own values, and how many must be ablated together for as much of what ablating all heads does (of 0, 1, 2,
3, 4, 6, 8, 12, 16 and all); (2) the KL on the test split of searched edits of the first k heads and of whole layers, at
the same behaviour rate on val.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.peers.process import thread_environment

FAMILIES = ("llama", "qwen3", "gpt2")
SEEDS = 5
MOST_SEEDS = 8
"""Training fails to make an organism on some seeds; those are said and passed over."""
TOP = (4, 8)
"""Heads that are edited."""
SHARES = (0.5, 0.9, 0.99)
RATES = (0.5, 0.1, 0.05)
"""Largest behaviour rates on val of the points whose KL on test is compared."""
SETTINGS = {"evaluation": {"max_new_tokens": 32, "kl_tokens": 24, "batch_size": 200}}
"""Those of `experiments/demo`."""
METHODS = ("direct-contrast", "gradient", "integrated", "ablate", "restore", "interchange")


def organisms(folder: Path, family: str, seeds: int) -> list[tuple[int, Path]]:
    """The first seeds on which training makes an organism, and where it lies; trained where it is not there."""
    found: list[tuple[int, Path]] = []
    for seed in range(MOST_SEEDS):
        place, failed = folder / f"{family}-{seed}", folder / f"{family}-{seed}.failed"
        if len(found) < seeds and not failed.exists() and _trained(place, failed, family, seed):
            found.append((seed, place))
    return found


def _trained(place: Path, failed: Path, family: str, seed: int) -> bool:
    if (place / "organism.json").is_file():
        return True
    print(f"training {place.name}, which takes some minutes", file=sys.stderr)
    command = [sys.executable, "-c", "from iconoclast_tl.cli import main; main()", "organism", "train"]
    command += ["--family", family, "--seed", str(seed), "--out", str(place)]
    place.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **thread_environment(1)}  # the same organism whatever the machine's cores
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(f"{place.name} is no organism: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        failed.write_text(done.stderr, encoding="utf-8")
    return done.returncode == 0


def study(model: Path, folder: Path) -> dict[str, Any]:
    """Everything of one organism."""
    layers = searched(model, folder / "layers", {})
    asked = {str(k): {"top_k": k, "gradient": {"profile": "head"}} for k in TOP}
    heads = {name: searched(model, folder / f"heads-{name}", search) for name, search in asked.items()}
    return {"attribution": attributed(folder / "layers"), "layers": layers, "heads": heads}


def searched(model: Path, out: Path, search: Mapping[str, Any]) -> dict[str, Any]:
    """The points of a search, each measured on val and test, and what the chosen one does on test."""
    from iconoclast_tl.search.objective import Objective
    from iconoclast_tl.search.trace import read_trace
    from iconoclast_tl.stages.collection import collected
    from iconoclast_tl.stages.directions import estimated
    from iconoclast_tl.stages.evaluation import evaluated
    from iconoclast_tl.stages.opening import open_workspace
    from iconoclast_tl.stages.search import search_job
    from iconoclast_tl.stages.search import searched as search_stage

    settings = {**SETTINGS, "model": {"name": str(model), "dtype": "float32"}, "search": dict(search)}
    with open_workspace(settings, None, out) as workspace:
        activations = collected(workspace)
        directions = estimated(workspace, activations)
        edit = search_stage(workspace, directions, activations)
        trace, _ = read_trace(workspace.folder.trace)
        assert trace is not None  # the search has just ended
        source = search_job(workspace, directions, activations).source
        edits = [source.build(point.spec) for point in trace.points]
        changing = [one for one in edits if one.sites]
        scored = [Objective(base, workspace.sites)(changing) for base in (workspace.val, workspace.asked("test"))]
        results = evaluated(workspace, edit)
    measured = results["edited"]
    chosen = {name: measured[name]["value"] for name in ("behaviour_rate", "answered_rate", "kl_sequence")}
    points = [{"val": val.to_json(), "test": test.to_json()} for val, test in zip(*scored, strict=True)]
    return {"points": points, "chosen": chosen, "sites": len(edit.sites)}


def attributed(out: Path) -> dict[str, Any]:
    """How many heads hold each share, by every method, under the chosen edit."""
    from dataclasses import replace

    from iconoclast_tl.attribution.cumulative import HEADS
    from iconoclast_tl.stages.attribution import attributed as attribution_stage
    from iconoclast_tl.stages.opening import open_workspace

    with open_workspace({}, None, out) as workspace:
        config = workspace.settings.attribution.model_copy(update={"prompts": 48})
        study = attribution_stage(
            replace(workspace, settings=workspace.settings.model_copy(update={"attribution": config}))
        ).study
    found: dict[str, Any] = {"score": [float(study.target_scores.mean()), float(study.neutral_scores.mean())]}
    for method in METHODS:
        one = study.by(method)
        values = [float(one.means[one.parts.index(part)]) for part in one.top(len(one.parts), *HEADS)]
        curve = next(curve for curve in study.curves if curve.method == method)
        scores = curve.scores.double().mean(1).tolist()
        found[method] = {
            "by its values": [_first_with(values, share) for share in SHARES],
            "ablated together": [_first_below(curve.ks, scores, share) for share in SHARES],
        }
    found["n_heads"] = sum(part.component in HEADS for part in study.by("ablate").parts)
    return found


def _first_with(values: Sequence[float], share: float) -> int:
    """How many of the falling values hold this share of the sum of those above zero."""
    positive = [value for value in values if value > 0]
    total, running = sum(positive), 0.0
    for k, value in enumerate(positive, start=1):
        running += value
        if running >= share * total:
            return k
    return len(positive)


def _first_below(ks: Sequence[int], scores: Sequence[float], share: float) -> int:
    """The first k at which this share of what ablating all heads takes away is gone; all where that is nothing."""
    whole = scores[0] - scores[-1]
    gone = (k for k, score in zip(ks, scores, strict=True) if whole > 0 and scores[0] - score >= share * whole)
    return next(gone, ks[-1])


def least_kl(points: Sequence[Mapping[str, Mapping[str, float]]], rate: float) -> float | None:
    """KL on test of the point of least KL on val, of those that show the behaviour there at most at this rate."""
    possible = [point for point in points if point["val"]["behaviour_rate"] <= rate]
    chosen = min(possible, key=lambda point: point["val"]["kl_sequence"], default=None)
    return None if chosen is None else chosen["test"]["kl_sequence"]


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and 95% t-interval over seeds."""
    from statistics import mean, stdev

    from scipy.stats import t

    n, middle = len(values), mean(values)
    half = float(t.ppf(0.975, n - 1)) * stdev(values) / n**0.5 if n > 1 else float("nan")
    return {"mean": middle, "low": middle - half, "high": middle + half, "n": n}


Found = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Family → seed → what `study` found."""


def summary(found: Found) -> list[str]:
    """Both tables in Markdown."""
    return [*carrying(found), "", *costing(found)]


def carrying(found: Found) -> list[str]:
    """How many heads."""
    lines = ["| organism | method | by its values: 50, 90, 99% | ablated together: 50, 90, 99% |", "|---|---|---|---|"]
    for family, seeds in found.items():
        for method in METHODS:
            cells = []
            for kind in ("by its values", "ablated together"):
                columns = zip(*(one["attribution"][method][kind] for one in seeds.values()), strict=True)
                cells.append(", ".join(_shown(list(column), 1) for column in columns))
            lines.append(f"| {family} | {method} | {' | '.join(cells)} |")
    return lines


def costing(found: Found) -> list[str]:
    """What an edit of them costs."""
    ends = ", ".join(f"{100 * rate:g}%" for rate in RATES)
    head = f"| organism | edit | behaviour, % | answered, % | KL | KL / whole layers' KL at ≤ {ends} on val |"
    lines = [head, "|---|---|---|---|---|---|"]
    for family, seeds in found.items():
        for name in ("layers", *map(str, TOP)):
            rows = [_edit(one, name)["chosen"] for one in seeds.values()]
            cells = [_shown([100 * row[key] for row in rows], 1) for key in ("behaviour_rate", "answered_rate")]
            cells.append(_shown([row["kl_sequence"] for row in rows], 5))
            cells.append("" if name == "layers" else ", ".join(_ratio(seeds, name, rate) for rate in RATES))
            label = "whole layers" if name == "layers" else f"first {name} heads"
            lines.append(f"| {family} | {label} | {' | '.join(cells)} |")
    return lines


def _edit(one: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = one["layers"] if name == "layers" else one["heads"][name]
    return found


def _ratio(seeds: Mapping[str, Mapping[str, Any]], name: str, rate: float) -> str:
    """Geometric mean over the seeds on which both come as far, and how many those are."""
    from math import exp, log

    pairs = [[least_kl(_edit(one, edit)["points"], rate) for edit in (name, "layers")] for one in seeds.values()]
    logs = [log(heads / layers) for heads, layers in pairs if heads is not None and layers is not None]
    if not logs:
        return f"– (0 of {len(pairs)})"
    bounds = interval(logs)
    ends = f" [{exp(bounds['low']):.2f}, {exp(bounds['high']):.2f}]" if len(logs) > 1 else ""
    return f"{exp(bounds['mean']):.2f}{ends} ({len(logs)} of {len(pairs)})"


def _shown(values: Sequence[float], digits: int) -> str:
    bounds = interval(values)
    return f"{bounds['mean']:.{digits}f} [{bounds['low']:.{digits}f}, {bounds['high']:.{digits}f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, keep the results beside this file, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/heads"), help="organisms and run folders")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results.json")
    given = parser.parse_args(arguments)
    found: dict[str, dict[str, Any]] = {}
    for family in given.families:
        for seed, model in organisms(given.folder / "organisms", family, given.seeds):
            kept = given.folder / "found" / f"{family}-{seed}.json"
            if not kept.is_file():
                print(f"{family}, seed {seed}", file=sys.stderr)
                result = study(model, given.folder / f"{family}-{seed}")
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(result, indent=1), encoding="utf-8")
            found.setdefault(family, {})[str(seed)] = json.loads(kept.read_text(encoding="utf-8"))
    given.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(summary(found)))


if __name__ == "__main__":
    main()
