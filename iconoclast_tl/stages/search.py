"""The search of a run: its job put together from settings, directions and activations; the chosen edit kept."""

from __future__ import annotations

from iconoclast_tl.activations.store import Activations
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.store import save_edit
from iconoclast_tl.folding.merge import require_mergeable_bias
from iconoclast_tl.folding.merge_files import stored_parts
from iconoclast_tl.models.source import is_gguf
from iconoclast_tl.models.stored import skeleton, stored_folder
from iconoclast_tl.report.results import provenance, search_part
from iconoclast_tl.search.assemble import Inputs, RankedParts, make_job, ranked_parts
from iconoclast_tl.search.job import Found, Job
from iconoclast_tl.search.methods import find
from iconoclast_tl.search.requirements import edited_writers, require_searchable
from iconoclast_tl.stages.directions import labels_for
from iconoclast_tl.stages.edits import drop_of_other_edit
from iconoclast_tl.stages.workspace import Workspace, about


def search_job(workspace: Workspace, directions: Directions, activations: Activations) -> Job:
    """The job of `search.methods.find`."""
    settings = workspace.settings
    inputs = Inputs(
        model=workspace.model,
        directions=directions,
        acts=activations,
        search=settings.search,
        edit=settings.edit,
        scores=settings.scores,
        estimated=settings.directions if settings.directions.file is None else None,
        seed=settings.seed,
        merge=settings.fold.merge,
    )
    return make_job(
        inputs,
        train=workspace.asked("train", settings.search.gradient.prompts),
        val=workspace.val,
        ranked=_ranked(workspace, inputs) if inputs.ranks_parts else None,
        labels=labels_for(workspace, *inputs.other_sets.values()),
        journal=workspace.folder.journal,
        trace=workspace.folder.trace,
        track=workspace.track,
        say=workspace.say,
    )


def _ranked(workspace: Workspace, inputs: Inputs) -> RankedParts:
    """The parts that are edited, found once and kept in the manifest, so that a search that goes on has the same."""
    kept = (workspace.folder.read_manifest() or {}).get("searched_parts")
    if kept is not None:
        return RankedParts(**kept)
    attribution = workspace.settings.attribution
    with workspace.timed("attribute"):
        ranked = ranked_parts(inputs, lambda: workspace.asked("train", attribution.prompts), attribution)
    workspace.remember(searched_parts=ranked.to_json())
    workspace.say(str(ranked))
    return ranked


def searched(workspace: Workspace, directions: Directions, activations: Activations) -> Edit:
    """Bring the search to its end, choose by rule, and keep the edit."""
    require_settings_foldable(workspace)
    job = search_job(workspace, directions, activations)
    with workspace.timed("search"):
        found = find(job)
    _keep(workspace, found)
    return found.edit


def _keep(workspace: Workspace, found: Found) -> None:
    """Write the edit, and record what is said of the search; what was made of another edit goes first."""
    folder = workspace.folder
    drop_of_other_edit(folder, found.edit)
    save_edit(folder.path, found.edit, provenance(found))
    folder.record(**about(workspace), **search_part(found))


def require_settings_foldable(workspace: Workspace) -> None:
    """Raise `UserError`, before anything is computed, where the settings ask for edits that could not be folded."""
    settings = workspace.settings
    require_searchable(workspace.model, settings.edit, settings.search)
    if settings.fold.merge:
        _require_mergeable(workspace)


def _require_mergeable(workspace: Workspace) -> None:
    settings, model = workspace.settings, workspace.model
    writers = edited_writers(model)
    # Of quantised weights the shapes are not those of the files.
    hf = model.hf if model.quantization == "none" else skeleton(model.name, settings.model)
    if not is_gguf(model.name):  # which is merged in memory
        stored_parts(writers, hf, stored_folder(model.name, settings.model.revision))
    if settings.edit.affine:
        require_mergeable_bias(hf, writers.values())
