"""What every estimator of directions is worth on organisms whose rule is known.

On four organisms (one refusal mechanism each in a Llama, a Gemma 2 and a Mixtral; two mechanisms, for two topic
families, in a Llama): the directions of every estimator at its own best separating point, ablated at λ = 1 in all
layers, plain and affine; beside them what selects, refines or calibrates the directions of `mean`. Rates are those of
the test split.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.peers.process import thread_environment

SETTINGS = {
    "evaluation": {"max_new_tokens": 32, "kl_tokens": 24, "batch_size": 200},
    "directions": {"orthogonalize": False, "benign_rank": 0},
    "activations": {"positions": "template"},
}
"""Budgets are those of `experiments/demo`; no filters, so that estimators are seen as they are."""
TRAINED = Path(__file__).parents[2] / "tests" / "pipeline" / "organisms"
ORGANISMS = ("llama", "gemma2", "mixtral", "two mechanisms")
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "mean, selected by arditi": {"selection": {"rule": "arditi", "drop_last": 0.0, "min_induce": -100.0}},
    "mean, selected by cosmic": {"selection": {"rule": "cosmic", "drop_last": 0.0}},
    "mean, refined": {"refine": 3},
    "mean, neutral mean and 8 benign directions out": {"orthogonalize": True, "benign_rank": 8},
}
"""Of the directions of `mean`; on organisms no addition brings the behaviour's log-odds above 0, so that Arditi's
filter on them would remove every candidate."""
KINDS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "affine": {"affine": True},
    "calibrated": {"calibrate": 0.9},
    "norms kept": {"keep_norm": True},
}
"""Of the ablation."""


def organism(name: str, folder: Path) -> str:
    """Where an organism lies; the one with two mechanisms is trained where it is not there."""
    if name == "llama":
        return "organism"
    if name != "two mechanisms":
        return str(TRAINED / name)
    place = folder / "two_mechanisms"
    if not (place / "organism.json").is_file():
        print("training two mechanisms, which takes some minutes", file=sys.stderr)
        command = [sys.executable, "-c", "from iconoclast_tl.cli import main; main()", "organism", "train"]
        command += ["--set", "mechanisms=2", "--out", str(place)]
        subprocess.run(command, check=True, env={**os.environ, **thread_environment(1)})
    return str(place)


def study(model: str, out: Path) -> dict[str, Any]:
    """Everything of one organism."""
    from iconoclast_tl.directions.estimators.registry import ESTIMATORS
    from iconoclast_tl.stages.collection import collected
    from iconoclast_tl.stages.opening import open_workspace

    wanted: dict[str, Mapping[str, Any]] = {name: {"estimator": name} for name in ESTIMATORS}
    wanted |= VARIANTS
    found: dict[str, Any] = {}
    with open_workspace({**SETTINGS, "model": {"name": model, "dtype": "float32"}}, None, out) as workspace:
        activations, base = collected(workspace), workspace.asked("test")
        _warm_up(activations)
        for name, settings in wanted.items():
            print(f"  {name}", file=sys.stderr)
            config = workspace.settings.directions.model_copy(update={"position": _position(name), **_nested(settings)})
            here = replace(workspace, settings=workspace.settings.model_copy(update={"directions": config}))
            kinds = ("plain", "affine") if name in wanted.keys() - {"mean"} else tuple(KINDS)
            found[name] = measured(here, activations, base, kinds)
    return found


def measured(workspace: Any, activations: Any, base: Any, kinds: Sequence[str]) -> dict[str, Any]:
    """One kind of direction: where it is best, how well it separates, and what ablating it does."""
    from iconoclast_tl.directions.diagnostics import separation_intervals
    from iconoclast_tl.directions.estimate import stability
    from iconoclast_tl.directions.separation import projections
    from iconoclast_tl.edits.hooks import preview
    from iconoclast_tl.evaluation.base_and_edited import ask_base_and_edited
    from iconoclast_tl.stages.directions import estimated, labels_for
    from iconoclast_tl.stages.edits import uniform_edit

    config = workspace.settings.directions
    shown = labels_for(workspace, config)  # asked once, and no part of the estimator's time
    start = time.perf_counter()
    directions = estimated(workspace, activations)
    seconds = time.perf_counter() - start
    point, residuals = directions.best, activations.at(directions.position)
    along = [projections(rows, directions.main)[:, point] for rows in (residuals.target_val, residuals.neutral_val)]
    here = slice(point, point + 1)
    steady = stability(residuals.target_train[:, here], residuals.neutral_train[:, here], config, shown)
    d_prime, auroc = separation_intervals(*along)
    ablated = {}
    for kind in kinds:
        edit_config = workspace.settings.edit.model_copy(update=KINDS[kind])
        settings = workspace.settings.model_copy(update={"edit": edit_config})
        edit = uniform_edit(
            replace(workspace, settings=settings), directions, activations, point, 1.0, range(directions.n_layers)
        )
        changed = lambda: preview(edit, workspace.sites)  # noqa: B023, E731 (called here)
        compared = ask_base_and_edited(base, changed, workspace.truth)
        ablated[kind] = {**_rates(compared), "by_family": by_family(compared)}
    return {
        "position": directions.position,
        "point": point,
        "k": int(directions.vectors[:, point].any(-1).sum()),
        "d_prime": d_prime,
        "auroc": auroc,
        "stability": float(steady),
        "seconds": seconds,
        "facts": directions.provenance["facts"][point],
        "refinement": directions.provenance.get("refinement"),
        "ablated": ablated,
    }


def by_family(compared: Any) -> dict[str, dict[str, float]]:
    """Behaviour rate of the target prompts of each topic family, base and edited."""
    from iconoclast_tl.organisms.grammar import family_of, parse_prompt

    found, rows = {}, [row for row in compared.rows if row.set == "target"]
    families = [family_of(asked.topic) if (asked := parse_prompt(row.prompt)) else None for row in rows]
    for model in compared.responses:
        shows = [row.said[model].labels["markers"].shows for row in rows]
        found[model] = {
            family: sum(s for s, f in zip(shows, families, strict=True) if f == family) / families.count(family)
            for family in ("z", "q")
        }
    return found


def _warm_up(activations: Any) -> None:
    """Libraries are imported when they are first needed, which is no part of an estimator's time."""
    import torch

    from iconoclast_tl.directions.config import DirectionConfig
    from iconoclast_tl.directions.estimate import estimate_all
    from iconoclast_tl.directions.estimators.registry import ESTIMATORS

    residuals = activations.at()
    target, neutral = residuals.target_train[:, -1:], residuals.neutral_train[:, -1:]
    shown = torch.arange(len(target) + len(neutral)) < len(target)
    estimate_all(target, neutral, {name: DirectionConfig(estimator=name) for name in ESTIMATORS}, shown)


def _rates(compared: Any) -> dict[str, Any]:
    edited = compared.measured["edited"].to_json()
    return {name: edited[name] for name in ("behaviour_rate", "answered_rate", "spill_rate", "kl_sequence")}


def _position(name: str) -> int | None:
    """Estimators are compared at the last token; a selection may take any position of the template."""
    return None if "selected" in name else -1


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    from iconoclast_tl.directions.config import SelectionConfig

    selection = settings.get("selection")
    return {**settings, **({"selection": SelectionConfig(**selection)} if selection else {})}


def summary(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The tables of the README: estimators and variants, then kinds of ablation."""
    lines = [
        "| organism | directions | point | k | d′ on val | stability | s | behaviour, % | answered, % | KL "
        "| affine: behaviour, % | answered, % | KL |",
        "|" + "---|" * 13,
    ]
    for name, found in results.items():
        lines += [_row(name, which, one) for which, one in found.items()]
    lines += ["", "| organism | λ = 1 along `mean` | behaviour, % | answered, % | KL |", "|---|---|---|---|---|"]
    for name, found in results.items():
        kinds = found["mean"]["ablated"]
        lines += [f"| {name} | {kind} | {_cells(one)} |" for kind, one in kinds.items()]
    two = results.get("two mechanisms")
    if two:
        lines += [
            "",
            "| two mechanisms: directions | k | refused of z, % | of q, % | answered, % |",
            "|---|---|---|---|---|",
        ]
        for which, one in two.items():
            plain = one["ablated"]["plain"]
            shares = plain["by_family"]["edited"]
            left = f"{100 * shares['z']:.0f} | {100 * shares['q']:.0f} | {100 * plain['answered_rate']['value']:.0f}"
            lines.append(f"| {which} | {one['k']} | {left} |")
    return lines


def _row(name: str, which: str, one: Mapping[str, Any]) -> str:
    value, low, high = one["d_prime"]
    where = f"{one['point']}" if one["position"] == -1 else f"{one['point']} at {one['position']}"
    about = (
        f"{where} | {one['k']} | {value:.2f} [{low:.2f}, {high:.2f}] | {one['stability']:.2f} | {one['seconds']:.2f}"
    )
    return f"| {name} | {which} | {about} | {_cells(one['ablated']['plain'])} | {_cells(one['ablated']['affine'])} |"


def _cells(ablated: Mapping[str, Any]) -> str:
    shown, right = ablated["behaviour_rate"], ablated["answered_rate"]["value"]
    interval = f"[{100 * shown['low']:.0f}, {100 * shown['high']:.0f}]"
    return f"{100 * shown['value']:.0f} {interval} | {100 * right:.0f} | {ablated['kl_sequence']['value']:.4f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Study every organism that is not in the results yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/directions"), help="where organisms and runs go")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--organisms", nargs="*", default=list(ORGANISMS))
    options = parser.parse_args(argv)
    results = json.loads(options.results.read_text(encoding="utf-8")) if options.results.is_file() else {}
    for name in options.organisms:
        if name in results:
            continue
        print(name, file=sys.stderr)
        results[name] = study(organism(name, options.out), options.out / name.replace(" ", "-"))
        options.results.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n".join(summary(results)))


if __name__ == "__main__":
    main()
