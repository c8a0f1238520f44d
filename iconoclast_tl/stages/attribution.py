"""Attribution in a run folder: what `attribution.attribute` finds under the run's edit, and the edit of its heads."""

from __future__ import annotations

import shutil
from collections.abc import Collection

from iconoclast_tl.activations.store import Activations
from iconoclast_tl.attribution.attribute import direction_of, study_of
from iconoclast_tl.attribution.config import METHODS, NEED_AN_EDIT, AttributionConfig
from iconoclast_tl.attribution.cumulative import HEADS
from iconoclast_tl.attribution.parts import Part
from iconoclast_tl.attribution.study import Study
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.store import save_edit
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import write_json, write_text
from iconoclast_tl.report.pages.attribution import AttributionReport
from iconoclast_tl.stages.collection import collected
from iconoclast_tl.stages.directions import estimated
from iconoclast_tl.stages.edits import chosen_edit, drop_of_other_edit, uniform_edit
from iconoclast_tl.stages.run_folder import RunFolder
from iconoclast_tl.stages.workspace import Workspace


def attributed(
    workspace: Workspace, point: float | None = None, only: Collection[Part] | None = None
) -> AttributionReport:
    """Attribute the behaviour by `attribution.methods`; write attribution.json and attribution.html.

    Under the run's chosen edit, or, where `point` is given or there is no edit, under λ = 1 everywhere along the
    direction of a residual point. only: the parts to attribute to.
    """
    activations = collected(workspace)
    directions = estimated(workspace, activations)
    edit, name, config = _edit(workspace, directions, activations, point)
    with workspace.timed("attribute"):
        found = study_of(
            workspace.asked("train", config.prompts),
            edit,
            config,
            workspace.settings.scores,
            along=direction_of(edit, directions, workspace.model),
            acts=activations,
            name=name,
            only=only,
            leave_out=workspace.say if workspace.settings.attribution.methods == METHODS else None,
            say=workspace.say,
        )
        report = AttributionReport(found, config.top)
        write_json(workspace.folder.attribution, report.to_json())
        write_text(workspace.folder.attribution_page, report.page())
    return report


def _edit(
    workspace: Workspace, directions: Directions, activations: Activations, point: float | None
) -> tuple[Edit, str, AttributionConfig]:
    """The edit, what reports call it, and the settings with the methods that this edit allows."""
    config = workspace.settings.attribution
    if point is None and workspace.folder.edit.is_file():
        return chosen_edit(workspace), "the run's chosen edit", config
    at = float(directions.best) if point is None else point
    edit = uniform_edit(workspace, directions, activations, at, 1.0, range(directions.n_layers))
    name = f"λ = 1 everywhere, direction of point {at:g}"
    needing = [method for method in config.methods if method in NEED_AN_EDIT]
    if point is not None or not needing:
        return edit, name, config
    if config.methods != METHODS:
        raise UserError(
            f"{', '.join(needing)} {'needs' if len(needing) == 1 else 'need'} an edit",
            got=f"none in {workspace.folder.path}",
            mend="run `search` into this folder first, or name a direction by --point",
        )
    workspace.say(f"no edit in {workspace.folder.path}: {' and '.join(needing)} are left out")
    left = tuple(method for method in config.methods if method not in needing)
    return edit, name, config.model_copy(update={"methods": left})


def top_heads_edit(workspace: Workspace, found: Study, k: int, method: str | None = None) -> RunFolder:
    """A run folder of its own with the edit that projects v out of the k heads that a method ranks first.

    It lies in the run's, as `top-k`, and `preview --chosen`, `fold`, `merge` and `evaluate` work on it. The directions
    are those of the study, λ = 1, affine where its edit is. What was made of another edit there goes.
    """
    ranked = found.ranking(method)
    chosen = ranked.top(k, *HEADS)
    made = found.edit_of_heads(k, method)
    folder = RunFolder(workspace.folder.path / f"top-{k}")
    with folder.locked():
        for file in (workspace.folder.activations, workspace.folder.directions):
            shutil.copyfile(file, folder.path / file.name)
        manifest = dict(workspace.folder.read_manifest() or {})
        write_json(folder.manifest, {**manifest, "timing": {}})
        names = [str(part) for part in chosen]
        drop_of_other_edit(folder, made)
        save_edit(folder.path, made, {"heads": names, "by": ranked.method, "along": found.edit})
        rule = {"rule": f"first {k} heads by {ranked.method}", "edit": made.digest(), "heads": names}
        folder.record(chosen=rule)
    return folder
