"""Previews of a run: the val prompts asked with an edit's hooks off and on."""

from __future__ import annotations

from iconoclast_tl.activations.store import Activations
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.evaluation.base_and_edited import BaseAndEdited, ask_base_and_edited
from iconoclast_tl.foundation.storage import read_json, write_json
from iconoclast_tl.stages.edits import uniform_edit
from iconoclast_tl.stages.workspace import Workspace
from iconoclast_tl.statistics.rates import percent


def preview_default(workspace: Workspace, directions: Directions, activations: Activations) -> BaseAndEdited | None:
    """Preview the simplest ablation: the best separating direction, λ = 1 everywhere; None where that was done."""
    point = directions.best
    edit = uniform_edit(workspace, directions, activations, point, 1.0, range(directions.n_layers))
    file = workspace.folder.preview
    if file.is_file() and read_json(file).get("edit") == edit.digest():
        return None
    with workspace.timed("preview"):
        shown = ask_base_and_edited(workspace.val, lambda: preview(edit, workspace.sites), workspace.truth)
        about = {"split": "val", "point": point, "strength": 1.0, "edit": edit.digest()}
        write_json(file, {**about, **shown.to_json()})
    before, after = shown.measured["base"], shown.measured["edited"]
    workspace.say(
        f"preview on val, direction of point {point}, λ = 1 everywhere: behaviour {percent(before.behaviour_rate)} → "
        f"{percent(after.behaviour_rate)}, spill {percent(after.spill_rate)}, "
        f"KL {shown.divergences['edited'].sequence:.4f}"
    )
    return shown


def previewed(workspace: Workspace, edit: Edit) -> BaseAndEdited:
    """Ask the val prompts with the edit's hooks off and on, by the evaluation's response budget."""
    val = workspace.asked("val", briefly=False)
    return ask_base_and_edited(val, lambda: preview(edit, workspace.sites), workspace.truth)
