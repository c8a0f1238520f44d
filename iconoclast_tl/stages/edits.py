"""Edits of a run: made by hand from its directions, or chosen and stored in the run folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from iconoclast_tl.activations.store import Activations
from iconoclast_tl.directions.directions import Directions, load_directions
from iconoclast_tl.edits.ablation import ablate
from iconoclast_tl.edits.addition import Addition, mean_gap
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.store import load_edit, save_edit
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.stages.results import OF_AN_EVALUATION, withdraw
from iconoclast_tl.stages.run_folder import RunFolder
from iconoclast_tl.stages.workspace import Workspace


def uniform_edit(
    workspace: Workspace,
    directions: Directions,
    activations: Activations,
    point: float,
    strength: float,
    layers: Iterable[int],
) -> Edit:
    """Ablate one residual point's directions with the same strength at both writers of `layers`.

    Strengths are calibrated where the settings say so; there is no row normalisation, so that the preview is exact.
    """
    return ablate(
        workspace.model,
        directions.span(point),
        strength=strength,
        layers=layers,
        weights=directions.weights_at(point),
        acts=activations,
        config=workspace.settings.edit.model_copy(update={"row_normalization": "none"}),
        position=directions.position,
    )


def addition(
    workspace: Workspace,
    directions: Directions,
    activations: Activations,
    point: int,
    coefficient: float | None = None,
    file: Path | None = None,
) -> Addition:
    """The addition of α v at a residual point; v is the run's own direction there, or that of another run's file.

    coefficient: α; by default the gap between the means of the sides along the own v, so that for the estimator `mean`
    α v is their difference. `UserError` where the point has no direction, and without α for a file, whose prompts are
    not at hand.
    """
    if coefficient is None:
        own = directions.at(point)
        residuals = activations.at_or_last(directions.position)
        gap = mean_gap(own, residuals.target_train[:, point], residuals.neutral_train[:, point])
        if file is None:
            return Addition(own, point, gap)
        raise UserError(
            "another run's direction needs a coefficient",
            got=f"{file} and no coefficient",
            mend=f"pass --coefficient; along the run's own direction the sides lie {gap:.3g} apart at point {point}",
        )
    if file is None:
        return Addition(directions.at(point), point, coefficient)
    other = load_directions(file, workspace.model.n_layers, workspace.model.d_model)
    if other.provenance.get("fingerprint", workspace.model.fingerprint) != workspace.model.fingerprint:
        workspace.say(f"warning: the directions in {file} were estimated on other weights")
    return Addition(other.at(point), point, coefficient)


def keep_edit(workspace: Workspace, edit: Edit, about: Mapping[str, Any]) -> None:
    """Store an edit as the run's chosen one without a search; what was made of another edit is removed.

    about: how it came about, with what it is called as `previewed`. `UserError` for a folder with a search of its own.
    """
    folder = workspace.folder
    if folder.is_searched:
        raise UserError(
            f"{folder.path} holds a search, which chose its edit", got="another edit to keep", mend="pass another --out"
        )
    if not edit.sites:
        raise UserError("the edit changes nothing", want="one to keep with a strength or a coefficient other than 0")
    drop_of_other_edit(folder, edit)
    save_edit(folder.path, edit, about)
    strengths = {name: values[0].tolist() for name, values in edit.strengths.items()}
    chosen = {"rule": "previewed and kept", "edit": edit.digest(), "strengths": strengths, **about}
    folder.record(chosen=chosen)


def chosen_edit(workspace: Workspace) -> Edit:
    """The edit that an earlier search, or `keep_edit`, left in the run folder."""
    edit, _ = load_edit(workspace.folder.edit, workspace.model.n_layers, workspace.model.d_model)
    return edit


def drop_of_other_edit(folder: RunFolder, edit: Edit) -> None:
    """Remove, and strike from the state, what a run folder holds of another chosen edit than this."""
    if (folder.read_state().get("chosen") or {}).get("edit") == edit.digest():
        return
    withdraw(folder)
    for place in (folder.adapter, folder.merged):
        shutil.rmtree(place, ignore_errors=True)
    folder.record(**dict.fromkeys((*OF_AN_EVALUATION, "chosen", "fidelity", "merged")))
