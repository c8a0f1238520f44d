"""Model cards of a run's exports: README.md in adapter/ and merged/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iconoclast_tl.directions.directions import load_directions
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.store import load_edit
from iconoclast_tl.folding.model_card import Goal, model_card
from iconoclast_tl.foundation.storage import write_text
from iconoclast_tl.report.results import card_recipe
from iconoclast_tl.stages.run_folder import RunFolder
from iconoclast_tl.stages.settings import Settings


def write_cards(folder: RunFolder, settings: Settings) -> None:
    """Write the model card into adapter/ and merged/, where they exist, with the results once there are any."""
    manifest = folder.read_manifest()
    assert manifest is not None  # a folder with an edit has one
    n_layers, d_model = manifest["model"]["n_layers"], manifest["model"]["d_model"]
    edit, trial = load_edit(folder.edit, n_layers, d_model)
    state = folder.read_state()
    is_scored = state.get("evaluated") == {"edit": edit.digest()} and state.get("detector")
    measured = state if is_scored else None
    directions = load_directions(folder.directions, n_layers, d_model)
    recipe = card_recipe(directions, edit, trial, settings.search)
    goal = _goal(edit, trial, settings)
    recipe |= {"seed": settings.seed, "prompts": _describe(manifest["splits"])}
    if settings.model.quantization != "none":
        recipe["rates were measured on"] = f"{settings.model.quantization} weights, under the preview"
    for kind, place in (("adapter", folder.adapter), ("merged", folder.merged)):
        if place.is_dir():
            card = model_card(kind, settings.model.name, settings.behaviour, goal, recipe, measured)
            write_text(place / "README.md", card)


def _goal(edit: Edit, provenance: Mapping[str, Any], settings: Settings) -> Goal:
    """The search's goal; of an edit that was previewed and kept, what its strengths do."""
    if "previewed" not in provenance:
        return settings.search.goal
    strengths = [value for values in edit.strengths.values() for value in values.flatten().tolist()]
    if edit.shifted or (min(strengths) < 0 < max(strengths)):
        return "steer"
    return "suppress" if max(strengths) > 0 else "strengthen"


def _describe(counts: Mapping[str, Mapping[str, int]]) -> str:
    return ", ".join(f"{n['target']}+{n['neutral']} {split}" for split, n in counts.items())
