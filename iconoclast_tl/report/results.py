"""Parts of results.json and of model cards, from what the stages return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.sets import UNFILTERED
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.search.config import SearchConfig
from iconoclast_tl.search.job import Found, source_of


def search_part(found: Found) -> dict[str, Any]:
    """`search`, `pareto` and `chosen` of results.json; `chosen.edit` is the digest by which other parts refer to it."""
    edit, chosen, config = found.edit, found.chosen, found.config
    return {
        "search": found.about,
        "pareto": [
            {
                "behaviour_rate": candidate.scores.behaviour_rate,
                "spill_rate": candidate.scores.spill_rate,
                "kl": candidate.scores.kl(config.kl),
                "source": source_of(candidate.number, config),
                "confirmed": ["behaviour_rate", "spill_rate", "kl"],
                "proxy": _rate_or_none(candidate.proxy_rate),
                "train": _rate_or_none(candidate.train_rate),
            }
            for candidate in found.front()
        ],
        "chosen": {
            "rule": _rule(config),
            "source": source_of(chosen.number, config),
            "edit": edit.digest(),
            "strengths": {name: values[0].tolist() for name, values in edit.strengths.items()},
            **({"parts": {name: values.tolist() for name, values in edit.parts.items()}} if edit.parts else {}),
            "direction": {
                "scope": "per layer" if chosen.spec.point is None else "global",
                "point": chosen.spec.point,
                "set": chosen.spec.directions,
            },
            **provenance(found),
        },
    }


def _rate_or_none(rate: float | None) -> dict[str, float] | None:
    return None if rate is None else {"behaviour_rate": rate}


def provenance(found: Found) -> dict[str, Any]:
    """How the search came to its edit."""
    chosen = found.chosen
    return {
        "method": found.config.method,
        "trial": chosen.number,
        "spec": chosen.spec.to_json(),
        **({"choices": dict(chosen.choices)} if found.config.method == "outer" else {}),
        "val": chosen.scores.to_json(),
    }


def card_recipe(directions: Directions, edit: Edit, trial: Mapping[str, Any], search: SearchConfig) -> dict[str, Any]:
    """The rows of a model card's table: how the edit was made, as the files themselves say it."""
    estimated = {**directions.provenance.get("directions", {}), **_of_its_own(trial)}
    return {
        "directions": ", ".join(f"{name} {value}" for name, value in estimated.items() if value is not None),
        "estimated on": directions.provenance.get("model", "unknown"),
        "edit": _kind(edit),
        **({"added": _added(trial.get("added", {}))} if edit.shifted else {}),
        "sites": ", ".join(str(site) for site in edit.sites),
        "search": ", ".join(_searched(search, trial)),
    }


def _kind(edit: Edit) -> str:
    if not any(len(edit.at(site).directions) for site in edit.sites):
        return "an addition alone"
    return f"{'affine' if edit.is_affine else 'plain'}, row normalisation {edit.row_normalization}"


def _added(about: Mapping[str, Any]) -> str:
    if not about:  # of an edit that was not made by `preview`
        return "a constant"
    return f"{about['coefficient']:+.4g} v at residual point {about['point']}, v: {about['direction']}"


def _rule(search: SearchConfig) -> str:
    return search.choose if search.take is None else "taken by number"


def _of_its_own(trial: Mapping[str, Any]) -> dict[str, Any]:
    """How an edit's directions were made, where not as set."""
    if trial.get("spec", {}).get("directions") == UNFILTERED:
        return {"orthogonalize": False, "benign_rank": 0}
    choices = trial.get("choices", {})
    return {name: choices[name] for name in ("estimator", "orthogonalize", "benign_rank") if name in choices}


def _searched(search: SearchConfig, trial: Mapping[str, Any]) -> list[str]:
    if "previewed" in trial:
        return [f"none: previewed and kept, {trial['previewed']}"]
    if "heads" in trial:  # of an attribution
        return [f"none: {len(trial['heads'])} heads by {trial['by']}, λ = 1", *trial["heads"]]
    method = "gradient" if search.method == "gradient" else f"{search.method}, {search.trials} trials"
    return [f"preset {search.preset}", method, search.goal, f"rule {_rule(search)}", source_of(trial["trial"], search)]
